"""What the kernel's packet filter holds, asked of it without a process and without its sets.

`nft` fetches the elements of every set of a table before it lists a rule: of sets that packets
fill, that takes seconds. Formats: linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h;
the comment in a rule's user data is as libnftnl writes it (udata.h: type, length, value).
"""

from __future__ import annotations

import struct

from agent.host.netlink import NETFILTER, asked, attributes, text

_NFTABLES = 10 << 8  # the subsystem, in the upper byte of a message's type
_NEW_RULE, _GET_RULE = _NFTABLES | 6, _NFTABLES | 7
_NEW_GENERATION, _GET_GENERATION = _NFTABLES | 15, _NFTABLES | 16
_FAMILY = struct.Struct("!BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_GENERATION_ID = 1
_RULE_TABLE, _RULE_CHAIN, _RULE_USER_DATA = 1, 2, 7
_COMMENT = 0
_INET = 1


def ruleset_generation() -> int | None:
    """The number of the last transaction, or None if the kernel does not say.

    It changes with every transaction of whoever writes rules in this network namespace, and not
    when packets change sets.
    """
    try:
        for kind, body in asked(NETFILTER, _GET_GENERATION, _FAMILY.pack(0, 0, 0), dump=False):
            number = attributes(body, _FAMILY.size).get(_GENERATION_ID, b"")
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
    for kind, body in asked(NETFILTER, _GET_RULE, _FAMILY.pack(_INET, 0, 0) + wanted):
        rule = attributes(body, _FAMILY.size)
        if kind == _NEW_RULE and rule.get(_RULE_TABLE) == name:
            comment = _comment(rule.get(_RULE_USER_DATA, b""))
            found.append((text(rule.get(_RULE_CHAIN)), comment))
    return found


def _comment(user_data: bytes) -> str | None:
    at = 0
    while at + 2 <= len(user_data):
        kind, length = user_data[at], user_data[at + 1]
        if kind == _COMMENT:
            return user_data[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return None
