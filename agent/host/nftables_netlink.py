"""What the kernel's packet filter holds, asked of it without a process and without its sets.

`nft` fetches the elements of every set of a table before it lists a rule: of sets that packets
fill, that takes seconds. Formats: linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h;
the comment in a rule's user data is as libnftnl writes it (udata.h: type, length, value).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

_NETLINK_NETFILTER = 12
_NFTABLES = 10 << 8  # the subsystem, in the upper byte of a message's type
_NEW_RULE, _GET_RULE = _NFTABLES | 6, _NFTABLES | 7
_NEW_GENERATION, _GET_GENERATION = _NFTABLES | 15, _NFTABLES | 16
_REQUEST, _DUMP = 1, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_FAMILY = struct.Struct("!BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_TYPE_MASK = 0x3FFF  # the upper bits are flags
_GENERATION_ID = 1
_RULE_TABLE, _RULE_CHAIN, _RULE_USER_DATA = 1, 2, 7
_COMMENT = 0
_INET = 1
_ANSWER_S = 1.0
_PIECE = 1 << 16


def ruleset_generation() -> int | None:
    """The number of the last transaction, or None if the kernel does not say.

    It changes with every transaction of whoever writes rules in this network namespace, and not
    when packets change sets.
    """
    try:
        for kind, body in _asked(_GET_GENERATION, _REQUEST, 0, b""):
            number = _attributes(body).get(_GENERATION_ID, b"")
            if kind == _NEW_GENERATION and len(number) == 4:
                return int.from_bytes(number)
    except OSError:
        return None
    return None


def rule_comments(table: str) -> list[tuple[str, str | None]]:
    """(chain, comment) of every rule of a table of family inet; none if there is no such table.

    Raises OSError.
    """
    name = table.encode() + b"\0"
    padded = name + bytes(-len(name) % 4)
    wanted = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(name), _RULE_TABLE) + padded
    found = []
    for kind, body in _asked(_GET_RULE, _REQUEST | _DUMP, _INET, wanted):
        rule = _attributes(body)
        if kind == _NEW_RULE and rule.get(_RULE_TABLE) == name:
            chain = rule.get(_RULE_CHAIN, b"").rstrip(b"\0").decode(errors="replace")
            found.append((chain, _comment(rule.get(_RULE_USER_DATA, b""))))
    return found


def _asked(kind: int, flags: int, family: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message of the answer. Raises OSError.

    The kernel answers as it is asked: nothing is waited for but in an error of its own.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_ANSWER_S)
        netlink.bind((0, 0))
        request = _FAMILY.pack(family, 0, 0) + body
        netlink.send(_HEADER.pack(_HEADER.size + len(request), kind, flags, 1, 0) + request)
        while True:
            for got, content in _messages(netlink.recv(_PIECE)):
                if got == _DONE:
                    return
                if got == _ERROR:
                    raise OSError(-struct.unpack_from("=i", content)[0], "netlink")
                yield got, content
                if not flags & _DUMP:
                    return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(body: bytes) -> dict[int, bytes]:
    """Of a message of nfnetlink, by type."""
    found, at = {}, _FAMILY.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _comment(user_data: bytes) -> str | None:
    at = 0
    while at + 2 <= len(user_data):
        kind, length = user_data[at], user_data[at + 1]
        if kind == _COMMENT:
            return user_data[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return None
