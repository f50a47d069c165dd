"""One HTTP connection of a stranger's, bounded in time, bytes and what it makes the agent keep.

::

    connected ──head_s──► head ──► body (whoever reads it bounds it) ──► answer ──answer_s──► idle
                ▲                                                                              │
                └──────────────────────────────first byte──────────────────── idle_s ──────────┘

Requests on one connection are served one by one; two more are parsed meanwhile, and then it is
not read from. Who breaks a bound is dropped without a word, but for a head that is too large.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from aiohttp import StreamReader, web
from aiohttp.http import HttpRequestParser, RawRequestMessage

from agent.door.crowd import EvictingQueue
from agent.door.held import Held
from agent.door.limits import HELD_BYTES, READ_BYTES, UNREAD_BYTES, Limits
from agent.door.turns import Turns
from agent.host.paced_log import PacedLog

_log = PacedLog(logging.getLogger(__name__))
_WAITING = 2  # requests that are parsed while another is served
_SMALL = 4 << 10  # what is held below is not worth a look
_LINE_BYTES = 8190
_LINGER_S = 1.0
_THROWN_AWAY_BYTES = 256 << 10  # of one read, once nothing more is wanted


@dataclass(slots=True)
class Room:
    """What the connections of a listener share. Listeners may share `held`."""

    limits: Limits = field(default_factory=Limits)
    held: Held[DoorConnection] = field(default_factory=lambda: Held(HELD_BYTES))
    turns: Turns = field(default_factory=Turns)


class DoorConnection(web.RequestHandler):
    """A connection of `peer`, in a `room`, and in a `crowd` whose oldest may be put out for it.

    `TOO_LARGE`: media type and body of the answer to a head that is.
    """

    TOO_LARGE = ("text/plain; charset=utf-8", b"The head of the request is too large.\n")

    def __init__(
        self,
        server: web.Server,
        *,
        room: Room,
        peer: str,
        crowd: EvictingQueue[DoorConnection] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=room.limits.idle_s,
            lingering_time=_LINGER_S,
            read_bufsize=READ_BYTES,
        )
        self._max_msg_queue_size = _WAITING
        self._msg_queue_resume_size = 0
        self._parser = HttpRequestParser(
            self,
            loop,
            READ_BYTES,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            payload_exception=web.RequestPayloadError,
            max_msg_queue_size=_WAITING,
        )
        self._limits = room.limits
        self._held = room.held
        self._turns = room.turns
        self._turn: asyncio.Future[None] | None = None
        self._came_early = False  # the next request, before the one before it was answered
        self._peer = peer
        self._crowd = crowd
        self._serving = 0
        self._body: StreamReader | None = None  # of the request that was parsed last
        self._hears = True
        self._head_bytes = 0  # of the head that has not ended
        self._parsed: deque[int] = deque()  # bytes of heads whose requests are not answered
        self._body_bytes = 0
        self._unread_bytes = 0
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(UNREAD_BYTES)
        self._read_at_most(READ_BYTES)
        self._begin_to_wait()
        out = self._crowd.enter(self._peer, self) if self._crowd is not None else None
        if out is not None:
            out.drop("others need its place")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wait_no_more()
        self._cancel_stalled()
        if self._turn is not None and not self._turn.done():
            self._turn.set_exception(ConnectionResetError("it went before its turn"))
        self.transport = None
        self._tell_held()
        if self._crowd is not None:
            self._crowd.leave(self._peer, self)
        self._forget_body()
        super().connection_lost(exc)

    def _forget_body(self) -> None:
        """What came of it goes now: the connection itself may have to wait for a collection."""
        body, self._body = self._body, None
        if body is not None and not body.at_eof():
            body._buffer.clear()

    def data_received(self, data: bytes) -> None:
        if not self._hears:
            return
        if not data:  # aiohttp: go on with what was left
            self._parse(data)
        at = 0
        while at < len(data) and self._hears:
            size = READ_BYTES
            if not self._in_body():
                size = min(size, self._limits.head_bytes - self._head_bytes)
            self._parse(data[at : at + size])
            at += size

    def _in_body(self) -> bool:
        """Whether the request that was parsed last has not ended yet."""
        return self._body is not None and not self._body.is_eof()

    def _parse(self, piece: bytes) -> None:
        in_body = self._in_body()
        before = self._request_count
        super().data_received(piece)
        if self._request_count > before:
            message, self._body = self._messages[-1]
            if not isinstance(message, RawRequestMessage):
                self._hear_no_more()
            self._parsed.append(self._head_bytes + len(piece))
            self._parsed.extend([0] * (self._request_count - before - 1))
            self._head_bytes = 0
            self._wait_no_more()
        elif not in_body and piece:
            self._head_bytes += len(piece)
            if self._head_bytes >= self._limits.head_bytes:
                self._refuse_head()
                return
            if self._patience is None and not self._busy():
                self._begin_to_wait()
        self._tell_held()

    def _busy(self) -> bool:
        return bool(self._serving or self._messages)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """While a request is served: its head is here."""
        self._serving += 1
        self._wait_no_more()
        if self._crowd is not None:
            self._crowd.serving(self, now=True)
        try:
            yield
        finally:
            self._serving -= 1
            self._body_bytes = 0
            if self._parsed:  # unless it is gone
                self._parsed.popleft()
            if not self._messages:
                self._parse(b"")  # aiohttp's parser may rest on the next one
            self._came_early = bool(self._messages)
            if not self._messages and self._head_bytes and self.transport is not None:
                self._begin_to_wait()
            self._tell_held()
            if self._crowd is not None:
                self._crowd.serving(self, now=False)

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        if self._came_early:
            self._turn = self._turns.next()
            await self._turn
        return await super()._handle_request(request, start_time, request_handler)

    def hold_body(self, size: int) -> None:
        """So much of the body of the request being served is kept in memory."""
        self._body_bytes = size
        self._tell_held()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._watch_answer()
            self._tell_held()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stalled()
        self._unread_bytes = 0
        self._tell_held()

    def drop(self, reason: str) -> None:
        """End it at once, without another byte."""
        _log.info("connection closed", extra={"peer": self._peer, "reason": reason})
        if self.transport is not None:
            self.transport.abort()

    def _refuse_head(self) -> None:
        """With an answer, if it is the only one that is due."""
        self._wait_no_more()
        self._hear_no_more()
        _log.info("connection closed", extra={"peer": self._peer, "reason": "head too large"})
        if self._busy() or self.transport is None:
            self.force_close()
            return
        media, body = self.TOO_LARGE
        head = (
            f"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: {media}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        asyncio.get_running_loop().call_later(_LINGER_S, self.force_close)

    def _hear_no_more(self) -> None:
        """Throw away what still comes: a socket that is closed on it takes its answer back."""
        self._hears = False
        self._read_at_most(_THROWN_AWAY_BYTES)

    def _read_at_most(self, size: int) -> None:
        """Of a plain socket asyncio reads 256 KiB at once otherwise."""
        with contextlib.suppress(AttributeError):
            self.transport.max_size = size  # type: ignore[union-attr]

    def _tell_held(self) -> None:
        size = self._head_bytes + sum(self._parsed) + self._body_bytes + self._unread_bytes
        if self.transport is None:  # whoever served it may not know yet that it is gone
            size = 0
        for out in self._held.hold(self._peer, self, size if size > _SMALL else 0):
            out.drop("it holds too much memory")

    def _begin_to_wait(self) -> None:
        if self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(
                self._limits.head_s, self.drop, "no request came in time"
            )

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _watch_answer(self) -> None:
        self._cancel_stalled()
        left = self.transport.get_write_buffer_size() if self.transport is not None else 0
        loop = asyncio.get_running_loop()
        self._stalled = loop.call_later(self._limits.answer_s, self._look_at_answer, left)

    def _look_at_answer(self, before: int) -> None:
        """Who takes some of it meanwhile is only slow."""
        self._stalled = None
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() > before - READ_BYTES:
            self.drop("its answer is not taken")
        else:
            self._watch_answer()

    def _cancel_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
