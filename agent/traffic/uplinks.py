"""The links by which clients may come: those with an IPv4 address of the host's own.

Bridges are passed over, unless the host's default route is there: behind them are other programs'
machines, and what they may reach is for those programs to say. So are agents' own ways to ask as
clients do: nobody comes by them. Sources: netdevice(7), proc(5) for
/proc/net/route, <linux/ethtool.h> for the kind of a link.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from array import array
from pathlib import Path

from agent.model.link_names import is_outside_link

_ROUTES = Path("/proc/thread-self/net/route")
_SIOCGIFCONF, _IFREQ_BYTES, _NAME_BYTES = 0x8912, 40, 16
_MOST_ADDRESSES = 4096
_SIOCETHTOOL, _ETHTOOL_GDRVINFO = 0x8946, 3
_DRIVER_INFO_BYTES = 196
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}")


def uplinks(bridge: str) -> frozenset[str]:
    """By name; never `bridge`, which is the guests'."""
    default = _with_default_route()
    links = (name for name in _with_ipv4() if not is_outside_link(name))
    found = {name for name in links if name not in ("lo", bridge) and _NAME.fullmatch(name)}
    return frozenset(name for name in found if name in default or not _is_bridge(name))


def _with_ipv4() -> frozenset[str]:
    """Those with any IPv4 address. An address may have a label: LINK:LABEL."""
    told = array("B", bytes(_IFREQ_BYTES * _MOST_ADDRESSES))
    address, size = told.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFCONF, struct.pack("iP", size, address))
    (filled, _) = struct.unpack("iP", answer)
    rows = [bytes(told[at : at + _NAME_BYTES]) for at in range(0, filled, _IFREQ_BYTES)]
    labels = {row.partition(b"\0")[0].decode(errors="replace") for row in rows}
    return frozenset(label.partition(":")[0] for label in labels)


def is_link(name: str) -> bool:
    """Whether a link has this name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _with_default_route() -> frozenset[str]:
    try:
        lines = _ROUTES.read_text().splitlines()[1:]
    except OSError:
        return frozenset()
    rows = [line.split() for line in lines]
    return frozenset(row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000")


def _is_bridge(name: str) -> bool:
    """Asked of the link's driver; of links of many kinds none answers."""
    told = array("B", struct.pack("=I", _ETHTOOL_GDRVINFO).ljust(_DRIVER_INFO_BYTES, b"\0"))
    address, _ = told.buffer_info()
    request = struct.pack("16sP", name.encode(), address).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError:
            return False
    return told.tobytes()[4:36].rstrip(b"\0") == b"bridge"
