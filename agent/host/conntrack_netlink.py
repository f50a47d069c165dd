"""The kernel's table of connections by netlink: what is asked for, and nothing else, is told.

The kernel compares each of its entries with the filter and passes on what matches (Linux 5.8 and
later). An older one passes over a filter that it does not know, and tells more: so whoever asks
looks at what comes, too. Needs CAP_NET_ADMIN. Everything here blocks, for as long as a walk
through the table takes.

Sources of the formats: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h (status) and
nf_conntrack_tcp.h (states); the flags of a filter are those of net/netfilter/nf_internals.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agent.host.netlink import NETFILTER, asked, attributes, ordered

SEEN_REPLY, DST_NAT = 1 << 1, 1 << 5  # of the status
STATES = (
    *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"),
    *("TIME_WAIT", "CLOSE", "SYN_SENT2"),
)
_NEW, _GET, _DELETE = 1 << 8, 1 << 8 | 1, 1 << 8 | 2  # the subsystem in the upper byte
_FAMILY = struct.Struct("!BBH")  # family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS, _PROTOCOL_INFO, _ID, _FILTER = 1, 2, 3, 4, 12, 25
_ADDRESSES, _PROTOCOL = 1, 2  # of a tuple
_SOURCE, _DESTINATION = 1, 2  # of addresses (IPv4)
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # of a protocol
_TCP_INFO, _TCP_STATE, _TCP_FLAGS_OF_REPLIES = 1, 1, 5
_CLOSED_FIRST = 0x04  # IP_CT_TCP_FLAG_CLOSE_INIT
_HALF_CLOSED = frozenset({"FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"})
_REPLY_FLAGS = 2  # of a filter
_TYPE_BITS = 0x3FFF
_BY_SOURCE, _BY_PROTOCOL, _BY_SOURCE_PORT = 1 << 0, 1 << 3, 1 << 4
# A tuple of IPv4 and TCP as the kernel writes it: heads of attributes, and what they hold.
_WHOLE = struct.Struct("=3I4sI4sII4xI2s2xI2s2x")


def _heads(direction: int) -> tuple[int, ...]:
    of_all = (
        *((52, direction | _NESTED), (20, _ADDRESSES | _NESTED), (8, _SOURCE), (8, _DESTINATION)),
        *((28, _PROTOCOL | _NESTED), (5, _NUMBER), (6, _SOURCE_PORT), (6, _DESTINATION_PORT)),
    )
    return tuple(struct.unpack("=I", _ATTRIBUTE.pack(*one))[0] for one in of_all)


_HEADS_THERE, _HEADS_BACK = _heads(_ORIGINAL), _heads(_REPLY)


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a flow."""

    source: str
    destination: str
    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP flow: what its client sends, and what the answers look like before translation.

    `id`: the kernel's, by which one is told from a later one of the same addresses and ports.
    `closed_by_guest`: whoever answers closed it first, and its client has not looked at it since:
    it is over, although the kernel keeps it for minutes.
    """

    state: str
    original: Tuple
    reply: Tuple
    id: bytes = b""
    closed_by_guest: bool = False

    @property
    def endpoint(self) -> tuple[str, int]:
        """Who answers."""
        return self.reply.source, self.reply.source_port

    @property
    def is_translated(self) -> bool:
        """Whether that is another than was asked."""
        return self.endpoint != (self.original.destination, self.original.destination_port)


def told(status: int, endpoint: tuple[str, int] | None = None) -> Iterator[bytes]:
    """The entries of IPv4 that have these bits of the status and, if there is one, whose answers
    come from the TCP endpoint. Raises OSError.
    """
    wanted = _attribute(_STATUS, struct.pack("!I", status))
    if endpoint is not None:
        flags = struct.pack("=I", _BY_SOURCE | _BY_PROTOCOL | _BY_SOURCE_PORT)
        wanted += _nested(_REPLY, _answers_from(*endpoint))
        wanted += _nested(_FILTER, _attribute(_REPLY_FLAGS, flags))
    for kind, body in asked(NETFILTER, _GET, _FAMILY.pack(socket.AF_INET, 0, 0) + wanted):
        if kind == _NEW:
            yield body


def flow_of(entry: bytes) -> Flow | None:
    """A flow of TCP, or None for one of something else. Raises ValueError if it is cut short."""
    info = _tcp_info(entry)
    state = _state(info)
    if state is None:
        return None
    original, reply = _paths(entry)
    flags = (info.get(_TCP_FLAGS_OF_REPLIES) or b"\0")[0]
    return Flow(
        state,
        _readable(original),
        _readable(reply),
        attributes(entry, _FAMILY.size).get(_ID, b""),
        state in _HALF_CLOSED and flags & _CLOSED_FIRST != 0,
    )


def counted(entries: Iterable[bytes], states: Collection[str]) -> Counter[tuple[str, int]]:
    """Endpoint → how many flows of TCP in one of these states were translated to it.

    Raises ValueError. There may be very many: no more is read of each than that takes.
    """
    found: Counter[tuple[bytes, bytes]] = Counter()
    for entry in entries:
        if _state(_tcp_info(entry)) not in states:
            continue
        original, reply = _paths(entry)
        endpoint = reply.source, reply.source_port
        if endpoint != (original.destination, original.destination_port):
            found[endpoint] += 1
    counts = Counter[tuple[str, int]]()
    for (address, port), count in found.items():
        counts[socket.inet_ntoa(address), int.from_bytes(port)] += count
    return counts


def delete(flows: Iterable[Flow]) -> None:
    """Forget these; one that is gone, or is another by now, is none. Raises OSError."""
    orders = (
        _FAMILY.pack(socket.AF_INET, 0, 0)
        + _nested(_ORIGINAL, _packed(flow.original))
        + (_attribute(_ID, flow.id) if flow.id else b"")
        for flow in flows
    )
    for number in ordered(NETFILTER, _DELETE, orders):
        if number not in (0, errno.ENOENT):
            raise OSError(number, "the kernel does not forget a connection")


class _Path(NamedTuple):
    """A tuple as the kernel tells it, in network byte order."""

    source: bytes
    destination: bytes
    source_port: bytes
    destination_port: bytes


def _tcp_info(entry: bytes) -> Mapping[int, bytes]:
    """What the entry says of TCP; nothing: it is of something else."""
    at = _FAMILY.size
    while at + _ATTRIBUTE.size <= len(entry):
        length, kind = _ATTRIBUTE.unpack_from(entry, at)
        if kind & _TYPE_BITS == _PROTOCOL_INFO:
            info = attributes(entry[at + _ATTRIBUTE.size : at + length], 0)
            return attributes(info.get(_TCP_INFO, b""), 0)
        at += max(_ATTRIBUTE.size, length + 3 & ~3)
    return {}


def _state(info: Mapping[int, bytes]) -> str | None:
    """None: it is not TCP."""
    state = info.get(_TCP_STATE)
    if not state:
        return None
    return STATES[state[0]] if state[0] < len(STATES) else "NONE"


def _paths(entry: bytes) -> tuple[_Path, _Path]:
    """There and back. They come first, and nearly always in the very order that is tried first."""
    if len(entry) >= _FAMILY.size + 2 * _WHOLE.size:
        there = _whole(entry, _FAMILY.size, _HEADS_THERE)
        back = _whole(entry, _FAMILY.size + _WHOLE.size, _HEADS_BACK)
        if there is not None and back is not None:
            return there, back
    parts = attributes(entry, _FAMILY.size)
    try:
        return _path(parts[_ORIGINAL]), _path(parts[_REPLY])
    except (KeyError, ValueError) as error:
        raise ValueError("an entry of the connection table is not understood") from error


def _whole(entry: bytes, at: int, heads: tuple[int, ...]) -> _Path | None:
    h1, h2, h3, source, h4, destination, h5, h6, h7, source_port, h8, port = _WHOLE.unpack_from(
        entry, at
    )
    if (h1, h2, h3, h4, h5, h6, h7, h8) != heads:
        return None
    return _Path(source, destination, source_port, port)


def _path(data: bytes) -> _Path:
    parts = attributes(data, 0)
    ends, ports = attributes(parts[_ADDRESSES], 0), attributes(parts[_PROTOCOL], 0)
    path = _Path(ends[_SOURCE], ends[_DESTINATION], ports[_SOURCE_PORT], ports[_DESTINATION_PORT])
    if tuple(map(len, path)) != (4, 4, 2, 2):
        raise ValueError("not of IPv4, or cut short")
    return path


def _readable(path: _Path) -> Tuple:
    return Tuple(
        socket.inet_ntoa(path.source),
        socket.inet_ntoa(path.destination),
        int.from_bytes(path.source_port),
        int.from_bytes(path.destination_port),
    )


def _packed(path: Tuple) -> bytes:
    ends = _attribute(_SOURCE, socket.inet_aton(path.source))
    ends += _attribute(_DESTINATION, socket.inet_aton(path.destination))
    ports = _attribute(_SOURCE_PORT, struct.pack("!H", path.source_port))
    ports += _attribute(_DESTINATION_PORT, struct.pack("!H", path.destination_port))
    return _nested(_ADDRESSES, ends) + _nested(_PROTOCOL, _tcp() + ports)


def _answers_from(address: str, port: int) -> bytes:
    ends = _attribute(_SOURCE, socket.inet_aton(address))
    ports = _attribute(_SOURCE_PORT, struct.pack("!H", port))
    return _nested(_ADDRESSES, ends) + _nested(_PROTOCOL, _tcp() + ports)


def _tcp() -> bytes:
    return _attribute(_NUMBER, bytes([socket.IPPROTO_TCP]))


def _nested(kind: int, data: bytes) -> bytes:
    return _attribute(kind | _NESTED, data)


def _attribute(kind: int, data: bytes) -> bytes:
    padded = data + bytes(-len(data) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + padded
