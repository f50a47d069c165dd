"""The networks that this host is itself on, from the kernel (rtnetlink), whoever made them.

They are the destinations of routes that need no gateway, and the host's own addresses. A route to
a 128th of the world or more is a default route in disguise (a tunnel or a point-to-point uplink),
and no network of the host's. All tables count: a policy or a VRF may have a table of its own.

Source of the layouts: linux/rtnetlink.h and linux/netlink.h; rtnetlink(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, collapse_addresses

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, …, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_NEW_ROUTE, _GET_ROUTE, _ERROR, _DONE = 24, 26, 2, 3
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DESTINATION, _OUT, _GATEWAY, _MULTIPATH, _VIA = 1, 4, 5, 9, 18
_UNICAST, _LOCAL, _BROADCAST = 1, 2, 3
_SCOPE_LINK = 253
_SHORTEST_PREFIX = 8
_MOST_BYTES = 1 << 18
_TIMEOUT_S = 5


def own_networks(without_link: str) -> tuple[IPv4Network, ...]:
    """Without those of one link, the guests' bridge, and without loopback.

    Sorted, without overlaps. Raises OSError.
    """
    try:
        index = socket.if_nametoindex(without_link)
    except OSError:
        index = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        request = _ROUTE.pack(socket.AF_INET, *[0] * 8)
        length = _HEADER.size + len(request)
        kernel.sendall(_HEADER.pack(length, _GET_ROUTE, _REQUEST_DUMP, 1, 0) + request)
        return direct_networks(_dumped(kernel), without_index=index)


def _dumped(kernel: socket.socket) -> Iterator[bytes]:
    """The messages of one dump. Raises OSError."""
    while True:
        data = kernel.recv(_MOST_BYTES)
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "the kernel lists no routes")
            if kind == _NEW_ROUTE:
                yield body


def direct_networks(routes: Iterable[bytes], *, without_index: int) -> tuple[IPv4Network, ...]:
    """Of messages of type RTM_NEWROUTE without their headers. Pure."""
    found = (_direct(route, without_index) for route in routes)
    return tuple(collapse_addresses(network for network in found if network is not None))


def _direct(route: bytes, without_index: int) -> IPv4Network | None:
    _, prefix, _, _, _, _, scope, kind, _ = _ROUTE.unpack_from(route)
    if kind not in (_UNICAST, _LOCAL, _BROADCAST) or scope < _SCOPE_LINK:
        return None
    attributes = dict(_attributes(route[_ROUTE.size :]))
    if prefix < _SHORTEST_PREFIX or attributes.keys() & {_GATEWAY, _MULTIPATH, _VIA}:
        return None
    if without_index and attributes.get(_OUT) == struct.pack("=I", without_index):
        return None
    destination = attributes.get(_DESTINATION, bytes(4))
    network = IPv4Network((destination, prefix))
    return None if network.is_loopback else network


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
