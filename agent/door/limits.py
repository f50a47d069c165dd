"""What a stranger's connection may cost, in time, bytes and number. Pure.

Every listener of the agent stands behind these: the status port, the unix socket, RPC and the
guests' endpoint. Numbers of a listener differ where its peers do; the rest is the same for all.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

READ_BYTES = 16 << 10  # of one read; whatever is not parsed yet is at most that
UNREAD_BYTES = 64 << 10  # of an answer, before whoever writes it waits
HELD_BYTES = 4 << 20
_ONE_SITE = 64  # bits: whoever has one address of IPv6 has all of its network


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one listener.

    `head_s`, `head_bytes`: a request's head, from its first byte (or from the connection) to its
    end. `idle_s`: between two requests. `answer_s`: how long an answer may stand still.
    `most`, `per_peer`: connections, of all peers and of one.
    """

    head_s: float = 10.0
    head_bytes: int = 64 << 10
    idle_s: float = 75.0
    answer_s: float = 30.0
    most: int = 128
    per_peer: int = 64


def peer_of_address(address: str) -> str:
    """Whom an address belongs to: IPv4, also when written as IPv6, by itself; IPv6 by its /64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), _ONE_SITE), strict=False))
