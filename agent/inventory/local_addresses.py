"""The host's own addresses, asked of the kernel by netlink (rtnetlink(7), <linux/rtnetlink.h>).

Asked is the table `local`, which decides whom a packet is for: it has addresses of links, whole
prefixes that somebody made local (`ip route add local …`), and each subnet's broadcast address.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

from agent.host.netlink import ROUTE, asked, attributes
from agent.model.addresses import HostAddresses

_GET_ROUTE = 26  # RTM_GETROUTE
_TABLE_LOCAL = 255
_LOCAL, _BROADCAST = 2, 3  # RTN_LOCAL, RTN_BROADCAST
_DESTINATION = 1  # RTA_DST

_ROUTE = struct.Struct("=BBBBBBBBI")  # family, prefixes, tos, table, protocol, scope, type, flags


def read_local_addresses() -> HostAddresses:
    """Of this network namespace. Raises OSError where the kernel does not answer."""
    local: set[str] = set()
    broadcast: set[str] = set()
    for asked_for in (socket.AF_INET, socket.AF_INET6):
        request = _ROUTE.pack(asked_for, 0, 0, 0, _TABLE_LOCAL, 0, 0, 0, 0)
        for _, body in asked(ROUTE, _GET_ROUTE, request, strict=True):
            family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
            if table != _TABLE_LOCAL or family != asked_for:
                continue  # a kernel without the strict check lists all of them
            bare = bytes(4 if family == socket.AF_INET else 16)
            address = attributes(body, _ROUTE.size).get(_DESTINATION, bare)
            prefix = ipaddress.ip_network((address, length))
            if kind == _LOCAL:
                local.add(str(prefix))
            elif kind == _BROADCAST:
                broadcast.add(str(prefix.network_address))
    return HostAddresses(local=tuple(sorted(local)), broadcast=tuple(sorted(broadcast)))
