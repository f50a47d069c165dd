"""The networks that this host is itself on, from the kernel (rtnetlink), whoever made them.

They are the destinations of routes that need no gateway, and the host's own addresses. A route to
a 128th of the world or more is a default route in disguise (a tunnel or a point-to-point uplink),
and no network of the host's. All tables count: a policy or a VRF may have a table of its own.

Source of the layouts: linux/rtnetlink.h and linux/netlink.h; rtnetlink(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses

from agent.host.netlink import ROUTE, asked, attributes

_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, …, scope, type, flags
_NEW_ROUTE, _GET_ROUTE = 24, 26
_DESTINATION, _OUT, _GATEWAY, _MULTIPATH, _VIA = 1, 4, 5, 9, 18
_UNICAST, _LOCAL, _BROADCAST = 1, 2, 3
_SCOPE_LINK = 253
_SHORTEST_PREFIX = 8


def own_networks(without_link: str) -> tuple[IPv4Network, ...]:
    """Without those of one link, the guests' bridge, and without loopback.

    Sorted, without overlaps. Raises OSError.
    """
    try:
        index = socket.if_nametoindex(without_link)
    except OSError:
        index = 0
    answer = asked(ROUTE, _GET_ROUTE, _ROUTE.pack(socket.AF_INET, *[0] * 8))
    routes = [body for kind, body in answer if kind == _NEW_ROUTE]
    return direct_networks(routes, without_index=index)


def routed_networks() -> tuple[IPv4Network, ...]:
    """Whatever this host has a route to, in any table, but for default routes: not free to take.

    Sorted, without overlaps. Raises OSError.
    """
    answer = asked(ROUTE, _GET_ROUTE, _ROUTE.pack(socket.AF_INET, *[0] * 8))
    routes = [body for kind, body in answer if kind == _NEW_ROUTE]
    found = {
        IPv4Network((attributes(route, _ROUTE.size).get(_DESTINATION, bytes(4)), route[1]))
        for route in routes
    }
    return tuple(collapse_addresses(network for network in found if network.prefixlen))


def direct_networks(routes: Iterable[bytes], *, without_index: int) -> tuple[IPv4Network, ...]:
    """Of messages of type RTM_NEWROUTE without their headers. Pure."""
    found = (_direct(route, without_index) for route in routes)
    return tuple(collapse_addresses(network for network in found if network is not None))


def _direct(route: bytes, without_index: int) -> IPv4Network | None:
    _, prefix, _, _, _, _, scope, kind, _ = _ROUTE.unpack_from(route)
    if kind not in (_UNICAST, _LOCAL, _BROADCAST) or scope < _SCOPE_LINK:
        return None
    found = attributes(route, _ROUTE.size)
    if prefix < _SHORTEST_PREFIX or found.keys() & {_GATEWAY, _MULTIPATH, _VIA}:
        return None
    if without_index and found.get(_OUT) == struct.pack("=I", without_index):
        return None
    destination = found.get(_DESTINATION, bytes(4))
    network = IPv4Network((destination, prefix))
    return None if network.is_loopback else network
