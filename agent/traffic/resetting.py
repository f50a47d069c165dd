"""Makes idle TCP clients speak, so that the packet filter can answer them with a reset.

A filter can only reject what it sees, and an idle client sends nothing. A SYN/ACK from the
connection's other end makes it: RFC 5961 section 4 answers any SYN in a synchronised state with a
challenge ACK, whatever its sequence number. Connection tracking lets the SYN/ACK pass translated
(it ignores one in the reply direction of a known flow). The reset that `reject` then sends takes
its sequence number from that ACK, so the client accepts it as exact.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from agent.traffic.conntrack import Flow, Tuple

_SYN_ACK = 0x12
_TTL = 64


def missing() -> str | None:
    """Why idle clients cannot be reached from here, or None."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except OSError as error:
        return f"idle connections could not be reset: no raw socket ({error.strerror})"
    return None


def provoke(flows: Iterable[Flow]) -> None:
    """Send one SYN/ACK to each flow's client, as far as there is a way to it.

    Needs CAP_NET_RAW; raises OSError without it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for flow in flows:
            with contextlib.suppress(OSError):
                raw.sendto(syn_ack(flow.reply), (flow.reply.destination, 0))


def syn_ack(path: Tuple) -> bytes:
    """An IPv4 packet with a bare TCP SYN/ACK; the kernel fills in the header's own checksum."""
    source, destination = socket.inet_aton(path.source), socket.inet_aton(path.destination)
    ports = (path.source_port, path.destination_port)
    unsummed = struct.pack("!HHIIBBHHH", *ports, 0, 0, 5 << 4, _SYN_ACK, 1024, 0, 0)
    pseudo = source + destination + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(unsummed))
    segment = unsummed[:16] + struct.pack("!H", _checksum(pseudo + unsummed)) + unsummed[18:]
    length = 20 + len(segment)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, _TTL, socket.IPPROTO_TCP, 0)
    return header + source + destination + segment


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
