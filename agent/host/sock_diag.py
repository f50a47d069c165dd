"""Listening TCP sockets, asked of the kernel by netlink (sock_diag(7), <linux/inet_diag.h>).

The kernel walks only its table of listeners for it. For `/proc/net/tcp` it walks all connections
that there could be: 12 ms on an idle machine, and more the more memory it has.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from agent.model.resources import Listen

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_ERROR, _DONE = 2, 3
_TCP_LISTEN = 10
_ANY4 = "0.0.0.0"  # noqa: S104 - compared, not bound
_ANY6 = "::"
_V6ONLY = 11  # INET_DIAG_SKV6ONLY

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states, no socket id
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_PORT_AT, _ADDRESS_AT, _INODE_AT, _ANSWER_BYTES = 4, 8, 68, 72
_BUFFER_BYTES = 1 << 16


def read_listening() -> dict[Listen, int]:
    """Every listener of this network namespace; one of IPv6 that takes IPv4 too is both.

    With each the inode of its socket (of one of them, where several share it), by which the
    processes that have it open can be found. Raises OSError where the kernel does not answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        found: dict[Listen, int] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in _dump(kernel, family):
                (inode,) = struct.unpack_from("=I", body, _INODE_AT)
                found |= dict.fromkeys(_listeners(family, body), inode)
        return found


def _dump(kernel: socket.socket, family: int) -> Iterator[bytes]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
    size = _HEADER.size + len(request)
    kernel.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
    while True:
        data = kernel.recv(_BUFFER_BYTES)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _DONE:
                return
            body = data[_HEADER.size : length]
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", body)
                raise OSError(-number, "the kernel does not list its sockets")
            yield body
            data = data[_aligned(length) :]


def _listeners(family: int, body: bytes) -> Iterator[Listen]:
    if body[0] != family:
        return
    (port,) = struct.unpack_from(">H", body, _PORT_AT)
    size = 4 if family == socket.AF_INET else 16
    address = socket.inet_ntop(family, body[_ADDRESS_AT : _ADDRESS_AT + size])
    mapped = address.removeprefix("::ffff:")
    yield Listen(address=mapped if "." in mapped else address, port=port)
    if address == _ANY6 and not _is_v6only(body[_ANSWER_BYTES:]):
        yield Listen(address=_ANY4, port=port)


def _is_v6only(attributes: bytes) -> bool:
    """Taken for one that is not where the kernel does not say."""
    while len(attributes) > _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _V6ONLY:
            return attributes[_ATTRIBUTE.size] != 0
        attributes = attributes[max(_aligned(length), _ATTRIBUTE.size) :]
    return False


def _aligned(length: int) -> int:
    """Messages and attributes begin at multiples of four bytes."""
    return (length + 3) & ~3
