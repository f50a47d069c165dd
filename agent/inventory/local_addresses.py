"""The host's own addresses, asked of the kernel by netlink (rtnetlink(7), <linux/rtnetlink.h>).

Asked is the table `local`, which decides whom a packet is for: it has addresses of links, whole
prefixes that somebody made local (`ip route add local …`), and each subnet's broadcast address.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

from agent.model.addresses import HostAddresses

_NETLINK_ROUTE = 0
_SOL_NETLINK = 270
_STRICT_CHECK = 12  # NETLINK_GET_STRICT_CHK: dump only what is asked for (Linux 4.20)
_GET_ROUTE = 26  # RTM_GETROUTE
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_ERROR, _DONE = 2, 3
_TABLE_LOCAL = 255
_LOCAL, _BROADCAST = 2, 3  # RTN_LOCAL, RTN_BROADCAST
_DESTINATION = 1  # RTA_DST

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, prefixes, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_BUFFER_BYTES = 1 << 16


def read_local_addresses() -> HostAddresses:
    """Of this network namespace. Raises OSError where the kernel does not answer."""
    local: set[str] = set()
    broadcast: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as kernel:
        kernel.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind, prefix in _dump(kernel, family):
                if kind == _LOCAL:
                    local.add(str(prefix))
                elif kind == _BROADCAST:
                    broadcast.add(str(prefix.network_address))
    return HostAddresses(local=tuple(sorted(local)), broadcast=tuple(sorted(broadcast)))


def _dump(
    kernel: socket.socket, family: int
) -> Iterator[tuple[int, ipaddress.IPv4Network | ipaddress.IPv6Network]]:
    request = _ROUTE.pack(family, 0, 0, 0, _TABLE_LOCAL, 0, 0, 0, 0)
    size = _HEADER.size + len(request)
    kernel.send(_HEADER.pack(size, _GET_ROUTE, _REQUEST_DUMP, 1, 0) + request)
    while True:
        data = kernel.recv(_BUFFER_BYTES)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _DONE:
                return
            body = data[_HEADER.size : length]
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", body)
                raise OSError(-number, "the kernel does not list its local addresses")
            yield from _route(body)
            data = data[_aligned(length) :]


def _route(
    body: bytes,
) -> Iterator[tuple[int, ipaddress.IPv4Network | ipaddress.IPv6Network]]:
    """The table is looked at again: a kernel without the strict check lists all of them."""
    family, prefix, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    if table != _TABLE_LOCAL or family not in (socket.AF_INET, socket.AF_INET6):
        return
    address = bytes(4 if family == socket.AF_INET else 16)
    attributes = body[_ROUTE.size :]
    while len(attributes) >= _ATTRIBUTE.size:
        length, what = _ATTRIBUTE.unpack_from(attributes)
        if what == _DESTINATION:
            address = attributes[_ATTRIBUTE.size : length]
        attributes = attributes[max(_aligned(length), _ATTRIBUTE.size) :]
    yield kind, ipaddress.ip_network((address, prefix))


def _aligned(length: int) -> int:
    """Messages and attributes begin at multiples of four bytes."""
    return (length + 3) & ~3
