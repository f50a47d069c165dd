"""What the kernel tells by netlink: what it is asked for, and what is changed by anybody.

`asked` is one question with its answer. `Netlink` is a socket in multicast groups: whoever listens
looks for itself at what is there then; a message says that there is reason to look, and one that
was lost because too many came says it, too. Needs CAP_NET_ADMIN for the groups of nftables.

Source of the formats: netlink(7), rtnetlink(7), <linux/netlink.h>, <linux/netfilter/nfnetlink.h>.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12  # NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER
# NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE
_REQUEST, _ACKNOWLEDGE, _DUMP, _CREATE = 0x1, 0x4, 0x300, 0x400
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _STRICT_CHECK = 270, 12  # NETLINK_GET_STRICT_CHK (Linux 4.20)
_ANSWER_S = 5.0
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NUMBER = struct.Struct("=i")  # of an error, negative
_TYPE_BITS = 0x3FFF  # NLA_TYPE_MASK: without "nested" and "network byte order"
_MOST_BYTES = 1 << 16
_AT_ONCE = 64  # datagrams; a storm of them must not hold the event loop
_PACE_S = 0.1  # between two readings, so that a storm costs little


class Message(NamedTuple):
    """One message. `body` begins with the fixed header of its kind."""

    kind: int
    body: bytes


def messages(datagram: bytes) -> Iterator[Message]:
    """Those of one datagram. What is cut short ends it."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size or at + length > len(datagram):
            return
        yield Message(kind, datagram[at + _HEADER.size : at + length])
        at += _aligned(length)


def attributes(body: bytes, header_bytes: int) -> Mapping[int, bytes]:
    """The attributes behind the fixed header of a message, by their type; the last of each."""
    found: dict[int, bytes] = {}
    at = _aligned(header_bytes)
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            break
        found[kind & _TYPE_BITS] = body[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return found


def text(value: bytes | None) -> str:
    """A string attribute without its end; empty if there is none."""
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def asked(
    protocol: int, kind: int, body: bytes, *, dump: bool = True, strict: bool = False
) -> Iterator[Message]:
    """The kernel's answer: all that a dump lists, or the one message. Raises OSError.

    It answers as it is asked: nothing is waited for but in an error of its own. `strict`: only
    what the request names, where the kernel knows to choose.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as kernel:
        kernel.settimeout(_ANSWER_S)
        if strict:
            kernel.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        flags = _REQUEST | _DUMP if dump else _REQUEST
        kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        while True:
            for message in messages(kernel.recv(_MOST_BYTES)):
                if message.kind == _DONE:
                    return
                if message.kind == _ERROR:
                    (number,) = _NUMBER.unpack_from(message.body)
                    raise OSError(-number, "the kernel does not answer by netlink")
                yield message
                if not dump:
                    return


def ordered(
    protocol: int, kind: int, bodies: Iterable[bytes], *, make: bool = False
) -> Iterator[int]:
    """Have the kernel do these, one after the other: of each the number of its error, 0 for none.

    `make`: what is not there yet. Raises OSError where it does not answer.
    """
    flags = _REQUEST | _ACKNOWLEDGE | (_CREATE if make else 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as kernel:
        kernel.settimeout(_ANSWER_S)
        for number, body in enumerate(bodies, 1):
            head = _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0)
            kernel.send(head + body)
            answers = messages(kernel.recv(_MOST_BYTES))
            yield next(-_NUMBER.unpack_from(one.body)[0] for one in answers if one.kind == _ERROR)


class Netlink:
    """A socket in these groups (RTNLGRP_…, NFNLGRP_…). For one task of a running event loop."""

    def __init__(self, protocol: int, groups: tuple[int, ...]) -> None:
        self._protocol = protocol
        self._mask = sum(1 << (group - 1) for group in groups)

    def __enter__(self) -> Self:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._protocol)
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, self._mask))
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    async def heard(self, timeout_s: float) -> list[Message] | None:
        """What comes next, all that is there by then (bounded); None: some of it was lost.

        Nothing after that time; at most ten times a second.
        """
        await asyncio.sleep(_PACE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._readable()
        return self.waiting()

    def waiting(self) -> list[Message] | None:
        """The same of what is there now."""
        found: list[Message] = []
        lost = False
        for _ in range(_AT_ONCE):
            try:
                found += messages(self._socket.recv(_MOST_BYTES))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
        return None if lost else found

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._socket)
