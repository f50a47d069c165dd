"""The number of the packet filter's last transaction, asked of the kernel without a process.

It changes with every transaction of whoever writes rules in this network namespace, and not when
packets change sets. Formats: linux/netfilter/nfnetlink.h and nf_tables.h (NFT_MSG_GETGEN).
"""

from __future__ import annotations

import socket
import struct

_NETLINK_NETFILTER = 12
_NFTABLES = 10 << 8  # the subsystem, in the upper byte of a message's type
_NEW, _GET = _NFTABLES | 15, _NFTABLES | 16
_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_FAMILY = struct.Struct("!BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ID = 1
_ANSWER_S = 1.0


def ruleset_generation() -> int | None:
    """None if the kernel does not say. Does not wait: the kernel answers as it is asked."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(_ANSWER_S)
            netlink.bind((0, 0))
            length = _HEADER.size + _FAMILY.size
            netlink.send(_HEADER.pack(length, _GET, _REQUEST, 1, 0) + _FAMILY.pack(0, 0, 0))
            answer = netlink.recv(8192)
    except OSError:
        return None
    return _generation_in(answer)


def _generation_in(answer: bytes) -> int | None:
    if len(answer) < _HEADER.size + _FAMILY.size or _HEADER.unpack_from(answer)[1] != _NEW:
        return None
    at = _HEADER.size + _FAMILY.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _ID and length == _ATTRIBUTE.size + 4:
            number: int = struct.unpack_from("!I", answer, at + _ATTRIBUTE.size)[0]
            return number
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return None
