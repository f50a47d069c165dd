"""Listening TCP sockets, asked of the kernel by netlink (sock_diag(7), <linux/inet_diag.h>).

The kernel walks only its table of listeners for it. For `/proc/net/tcp` it walks all connections
that there could be: 12 ms on an idle machine, and more the more memory it has.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from agent.host.netlink import SOCK_DIAG, asked, attributes
from agent.model.resources import Listen

_SOCK_DIAG_BY_FAMILY = 20
_TCP_LISTEN = 10
_ANY4 = "0.0.0.0"  # noqa: S104 - compared, not bound
_ANY6 = "::"
_V6ONLY = 11  # INET_DIAG_SKV6ONLY

_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states, no socket id
_PORT_AT, _ADDRESS_AT, _INODE_AT, _ANSWER_BYTES = 4, 8, 68, 72


def read_listening() -> dict[Listen, int]:
    """Every listener of this network namespace; one of IPv6 that takes IPv4 too is both.

    With each the inode of its socket (of one of them, where several share it), by which the
    processes that have it open can be found. Raises OSError where the kernel does not answer.
    """
    found: dict[Listen, int] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
        for _, body in asked(SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request):
            (inode,) = struct.unpack_from("=I", body, _INODE_AT)
            found |= dict.fromkeys(_listeners(family, body), inode)
    return found


def _listeners(family: int, body: bytes) -> Iterator[Listen]:
    if body[0] != family:
        return
    (port,) = struct.unpack_from(">H", body, _PORT_AT)
    size = 4 if family == socket.AF_INET else 16
    address = socket.inet_ntop(family, body[_ADDRESS_AT : _ADDRESS_AT + size])
    mapped = address.removeprefix("::ffff:")
    yield Listen(address=mapped if "." in mapped else address, port=port)
    only_ipv6 = attributes(body, _ANSWER_BYTES).get(_V6ONLY, b"")  # empty: the kernel does not say
    if address == _ANY6 and not any(only_ipv6):
        yield Listen(address=_ANY4, port=port)
