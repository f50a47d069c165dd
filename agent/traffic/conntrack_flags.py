"""Who closed a flow first, which only netlink tells of the kernel's connection table.

A client that has not looked at its connection since the guest closed it keeps a flow for minutes:
it is over all the same. One request and answer a flow; needs CAP_NET_ADMIN.

Source of the formats: nfnetlink_conntrack.h and nf_conntrack_tcp.h of <linux/netfilter/>.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from agent.host.netlink import NETFILTER, asked, attributes
from agent.traffic.conntrack import Flow, Tuple

_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_NFGENMSG = struct.pack("=BBH", socket.AF_INET, 0, 0)
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TUPLE_ORIG, _PROTOINFO, _PROTOINFO_TCP, _FLAGS_REPLY = 1, 4, 1, 5
_IP, _PROTO = 1, 2
_CLOSE_INIT = 0x04  # IP_CT_TCP_FLAG_CLOSE_INIT
_HALF_CLOSED = frozenset({"FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"})


def closed_by_guest(flows: Iterable[Flow]) -> frozenset[Tuple]:
    """Of these flows, by what their clients send, those that the guest closed first."""
    return frozenset(
        flow.original for flow in flows if flow.state in _HALF_CLOSED and _guest_began(flow)
    )


def _guest_began(flow: Flow) -> bool:
    with contextlib.suppress(OSError):  # one that is gone meanwhile was not kept by its client
        for answer in asked(NETFILTER, _GET, request(flow.original), dump=False):
            return _reply_flags(answer.body) & _CLOSE_INIT != 0
    return False


def request(path: Tuple) -> bytes:
    """What asks for one flow."""
    addresses = _attribute(1, socket.inet_aton(path.source))
    addresses += _attribute(2, socket.inet_aton(path.destination))
    ports = _attribute(1, bytes([socket.IPPROTO_TCP]))
    ports += _attribute(2, struct.pack("!H", path.source_port))
    ports += _attribute(3, struct.pack("!H", path.destination_port))
    inside = _attribute(_IP | _NESTED, addresses) + _attribute(_PROTO | _NESTED, ports)
    return _NFGENMSG + _attribute(_TUPLE_ORIG | _NESTED, inside)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _reply_flags(body: bytes) -> int:
    inside = attributes(body, len(_NFGENMSG)).get(_PROTOINFO, b"")
    tcp = attributes(inside, 0).get(_PROTOINFO_TCP, b"")
    flags = attributes(tcp, 0).get(_FLAGS_REPLY, b"\0")
    return flags[0]
