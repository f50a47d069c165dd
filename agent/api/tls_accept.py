"""The door of the TLS listener: a connection becomes HTTP only as a peer with a role.

Every step before that is bounded in time and number: first a whole TLS hello (a peer that does not
send one costs a socket and no TLS state), then the handshake with both certificates verified, then
the look at the name. Whoever fails is dropped without an answer and counted by the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.door.accept import accept_for_ever
from agent.door.crowd import EvictingQueue
from agent.door.limits import peer_of_address
from agent.door.tls import accept_tls
from agent.pki.peer import Peer, peer_of

_log = logging.getLogger(__name__)
# A record is a type, a version and the length of what follows (RFC 8446, section 5.1).
_RECORD = struct.Struct("!BHH")
_HANDSHAKE, _LONGEST_RECORD = 22, 1 << 14
_UNACKNOWLEDGED_MS = 30_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Of what has no role yet. Another address than the flood's finds room at once."""

    handshake_s: float = 5.0
    silent: int = 256
    silent_per_address: int = 128
    handshakes: int = 16
    handshakes_per_address: int = 8


class TlsAcceptor:
    """Accepts until cancelled. `enter` gives a peer its protocol, or None to send it away."""

    def __init__(
        self,
        sock: socket.socket,
        context: Callable[[], ssl.SSLContext | None],
        enter: Callable[[Peer], asyncio.Protocol | None],
        refused: Counter[str],
        limits: Limits | None = None,
    ) -> None:
        self._sock = sock
        self._context = context
        self._enter = enter
        self._refused = refused
        self._limits = limits or Limits()
        of = self._limits
        self._silent: EvictingQueue[asyncio.Task[None]] = EvictingQueue(
            of.silent, of.silent_per_address
        )
        self._shaking: EvictingQueue[asyncio.Task[None]] = EvictingQueue(
            of.handshakes, of.handshakes_per_address
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept, for ever. When cancelled, whoever is at the door is dropped."""
        loop = asyncio.get_running_loop()

        def take(sock: socket.socket, address: Any) -> None:
            task = loop.create_task(self._receive(sock, peer_of_address(str(address[0]))))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        try:
            await accept_for_ever(self._sock, take)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _receive(self, sock: socket.socket, address: str) -> None:
        reason: str | None = "put_out"  # if it is cancelled
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
            async with asyncio.timeout(self._limits.handshake_s):
                reason = await self._let_in(sock, address)
        except TimeoutError:
            reason = "handshake_timeout"
        except ssl.SSLError as error:
            reason = "certificate" if "CERTIFICATE" in (error.reason or "") else "tls"
            if isinstance(error, ssl.SSLCertVerificationError):
                reason = "certificate"
        except OSError:
            reason = "gone"
        finally:
            if reason is not None:
                self._refused[reason] += 1
                _log.debug("connection refused", extra={"address": address, "reason": reason})
                sock.close()

    async def _let_in(self, sock: socket.socket, address: str) -> str | None:
        """None if it is in, and its transport owns the socket; else why not."""
        with _within(self._silent, address):
            reason = await _hello(sock)
        if reason is not None:
            return reason
        context = self._context()
        if context is None:
            return "no_certificate"
        threshold = _Threshold(self._enter, lambda: self._context() is context)
        with _within(self._shaking, address):
            await accept_tls(sock, context, threshold, self._flooded)
        if threshold.refusal is not None:
            self._refused[threshold.refusal] += 1
        return None

    def _flooded(self) -> None:
        self._refused["tls_flood"] += 1


@contextlib.contextmanager
def _within(queue: EvictingQueue[asyncio.Task[None]], address: str) -> Any:
    """In the crowd, until the end of the block or until put out for another."""
    task = asyncio.current_task()
    assert task is not None
    out = queue.enter(address, task)
    if out is not None:
        out.cancel()
    try:
        yield
    finally:
        queue.leave(address, task)


async def _hello(sock: socket.socket) -> str | None:
    """Until the first record is there to be read, unread yet; else why it never will be."""
    head = await _peek(sock, _RECORD.size)
    if len(head) < _RECORD.size:
        return "gone"
    kind, _, length = _RECORD.unpack(head)
    if kind != _HANDSHAKE or length > _LONGEST_RECORD:
        return "not_tls"
    whole = _RECORD.size + length
    return None if len(await _peek(sock, whole)) == whole else "gone"


async def _peek(sock: socket.socket, size: int) -> bytes:
    """So many bytes, left where they are; fewer if the peer has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    # not before so many are there is it readable (socket(7)): a few do not wake us again and again
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return sock.recv(size, socket.MSG_PEEK)


class _Threshold(asyncio.Protocol):
    """Stands where HTTP will stand, for the moment in which the peer is looked at."""

    def __init__(
        self, enter: Callable[[Peer], asyncio.Protocol | None], is_current: Callable[[], bool]
    ) -> None:
        self._enter = enter
        self._is_current = is_current
        self.refusal: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = peer_of(transport.get_extra_info("ssl_object"))
        protocol = None
        if not self._is_current():  # verified by what is not in force any more
            self.refusal = "certificates_changed"
        elif peer is None:
            self.refusal = "no_role"
        elif (protocol := self._enter(peer)) is None:
            self.refusal = "not_welcome"
        if protocol is None:
            transport.abort()
            return
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
