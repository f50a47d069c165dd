"""Fills the kernel's table of connections with flows of others, for as many as a busy host has.

They are made by netlink, as conntrackd makes those of another host: established, translated by
nobody, and nobody's. Needs CAP_NET_ADMIN; meant for a network namespace of one's own.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from agent.host.netlink import NETFILTER, ordered

_NEW = 1 << 8  # of the subsystem of connections; made, since nothing else is asked for
_ESTABLISHED = 3
_NESTED = 0x8000
_AN_ADDRESS = 30_000  # flows


def fill(count: int, *, seconds: int = 3600) -> None:
    """So many more, which stay so long. Raises OSError: with ENOSPC or ENOMEM where it is full."""
    for number in ordered(NETFILTER, _NEW, _bodies(count, seconds), make=True):
        if number:
            raise OSError(number, "the kernel takes no more connections")


def _bodies(count: int, seconds: int) -> Iterator[bytes]:
    there = socket.inet_aton("198.51.100.1")
    lasts = _attribute(7, struct.pack("!I", seconds))
    info = _nested(4, _nested(1, _attribute(1, bytes([_ESTABLISHED]))))
    for number in range(count):
        block, port = divmod(number, _AN_ADDRESS)
        here = socket.inet_aton(f"198.18.{block >> 8}.{block & 255}")
        ports = struct.pack("!H", 1024 + port), struct.pack("!H", 443)
        yield (
            bytes([socket.AF_INET, 0, 0, 0])
            + _path(1, here, there, *ports)
            + _path(2, there, here, *reversed(ports))
            + lasts
            + info
        )


def _path(kind: int, source: bytes, destination: bytes, *ports: bytes) -> bytes:
    ends = _attribute(1, source) + _attribute(2, destination)
    protocol = _attribute(1, bytes([socket.IPPROTO_TCP]))
    protocol += _attribute(2, ports[0]) + _attribute(3, ports[1])
    return _nested(kind, _nested(1, ends) + _nested(2, protocol))


def _nested(kind: int, data: bytes) -> bytes:
    return _attribute(kind | _NESTED, data)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
