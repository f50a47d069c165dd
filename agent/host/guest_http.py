"""Asking a guest over HTTPS: a fresh TLS connection for a few requests, or a few rounds of them.

Invariants: no connection outlives its visit; the key that an answer is credited to was read off
the very connection that brought it; a guest may be slow, endless or malicious, and costs no more
than the time and bytes that it was given for a round. Names and certificates are not trusted, only
noted.

HTTP/1.1 (RFC 9112) is parsed by llhttp. There is no client library between it and the connection:
a healthy guest is asked twice every two seconds for as long as it lives, and a library's session
cost more than all else that the agent does on a quiet host.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self, cast

import httptools

from agent.host.contact import Ending, HttpAnswer, NoAnswerError, door_of, tell
from agent.host.guest_sockets import UNMARKED, GuestSockets
from agent.host.peer_key import UnreadableKeyError, spki_sha256
from agent.model.enclave import Endpoint

_MAX_ROUND_BYTES = 320 * 1024  # more than all bounded answers of a round of probes
_NOT_HTTP = "its answer is not HTTP"
_CLOSED = "the connection was closed without an answer"


class GuestHttp:
    """One visit. Its connection is opened by the first request, and kept while answers are whole.

    `keys`: of the connections of this round in order, repeats left out (normally exactly one).
    `max_bytes`: what the guest may send over one connection in a round, whatever it calls it; a
    parser bounds bodies, but not endless interim answers or chunk extensions.
    `host`: the name to ask for, in `Host` and to TLS; `:PORT` may follow it in the former.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        *,
        host: str | None = None,
        max_bytes: int = _MAX_ROUND_BYTES,
        sockets: GuestSockets = UNMARKED,
    ) -> None:
        self._endpoint = endpoint
        self._context = context
        self._max_bytes = max_bytes
        self._host = host or _authority(endpoint)
        self._server_name = host.partition(":")[0] if host else endpoint.address
        self._sockets = sockets
        self._line: _Line | None = None
        self.keys: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._line is not None:
            self._line.drop()

    def begin_round(self) -> None:
        """Count keys and bytes from here."""
        self.keys.clear()
        if self._line is not None:
            self._line.bytes_left = self._max_bytes

    async def get(
        self,
        path: str,
        *,
        timeout_s: float,
        max_bytes: int,
        body_wait_s: float | None = None,
        bearer_for: Callable[[str], str | None] = lambda _: None,
    ) -> HttpAnswer:
        """One GET, no redirects followed; at most `max_bytes` of the body.

        `body_wait_s`: how long to wait for the body once the status is known. `bearer_for`: the
        token for whoever showed this key on the very connection that the request goes over.

        The status and what came of the body by `timeout_s` is an answer; without a status by then,
        or with something that is not HTTP, raises NoAnswerError. A connection on which an answer
        was not read to its end is not used again. One that the guest closed while nothing was
        asked is replaced by another.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        kept = self._line is not None and self._line.usable
        try:
            line = await self._connected(deadline)
            request = self._request(path, bearer_for(line.key))
            exchange = await line.exchange(request, deadline, max_bytes, body_wait_s)
            if kept and exchange.unheard and line.lost:
                line = await self._connected(deadline)
                request = self._request(path, bearer_for(line.key))
                exchange = await line.exchange(request, deadline, max_bytes, body_wait_s)
        except (TimeoutError, OSError, UnreadableKeyError) as error:
            raise NoAnswerError(tell(error, timeout_s), door_of(error)) from error
        if exchange.status is None:
            why = self.flooded or exchange.problem or tell(TimeoutError(), timeout_s)
            raise NoAnswerError(why)
        return HttpAnswer(exchange.status, bytes(exchange.body), exchange.ending)

    def _request(self, path: str, token: str | None) -> bytes:
        head = f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nUser-Agent: enclave-agent\r\n"
        if token is not None:
            head += f"Authorization: Bearer {token}\r\n"
        return f"{head}Accept: */*\r\nAccept-Encoding: identity\r\n\r\n".encode()

    async def _connected(self, deadline: float) -> _Line:
        """The line as it is, if it may be used again, or a new one; its key is noted."""
        line = self._line
        if line is None or not line.usable:
            async with asyncio.timeout_at(deadline):
                line = await self._open()
            self._line = line
            line.read_key()
        if self.keys[-1:] != [line.key]:
            self.keys.append(line.key)
        return line

    async def _open(self) -> _Line:
        """A new connection, past its handshake. The transport owns its socket from the call on."""
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: _Line(self._max_bytes),
            sock=await self._sockets.connect(self._endpoint),
            ssl=self._context,
            server_hostname=self._server_name,
        )
        return line

    @property
    def flooded(self) -> str | None:
        """What to say of a guest that sent more than anybody asked for."""
        flooded = self._line is not None and self._line.bytes_left < 0
        return f"it sent more than {self._max_bytes} bytes" if flooded else None


def _authority(endpoint: Endpoint) -> str:
    """ADDRESS:PORT as `Host` wants it."""
    address = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{address}:{endpoint.port}"


class _Exchange:
    """One request, and what has come of its answer; `done` when no more of it is wanted."""

    def __init__(self, max_bytes: int, body_wait_s: float | None) -> None:
        self.status: int | None = None
        self.body = bytearray()
        self.ending = Ending.CUT_OFF
        self.problem: str | None = None
        self.unheard = True  # not one byte came
        self._max_bytes = max_bytes
        self._body_wait_s = body_wait_s
        self._to_the_end = False  # the end of the connection is that of the body
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, deadline: float) -> None:
        """Until it is over, or `deadline`."""
        self._until(deadline)
        try:
            await self.done
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def begin_body(self, status: int, *, to_the_end: bool) -> None:
        if self.done.done():
            return  # it is another answer's, which nobody asked for
        self.status, self._to_the_end = status, to_the_end
        if self._body_wait_s is not None and self._timer is not None:
            self._until(min(self._timer.when(), self._loop.time() + self._body_wait_s))

    def add(self, data: bytes) -> None:
        if self.done.done():
            return
        self.body += data[: self._max_bytes + 1 - len(self.body)]
        if len(self.body) > self._max_bytes:
            del self.body[self._max_bytes :]
            self.end(Ending.TOO_LONG)

    def lose(self, problem: str) -> None:
        """The connection ended."""
        self.problem = self.problem or problem
        self.end(Ending.COMPLETE if self._to_the_end else Ending.CUT_OFF)

    def end(self, ending: Ending) -> None:
        if not self.done.done():
            self.ending = ending
            self.done.set_result(None)

    def _until(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self.end, Ending.CUT_OFF)


class _Line(asyncio.Protocol):
    """One connection: one exchange at a time, and dropped for whatever nobody asked for.

    The `on_…` are llhttp's.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes_left = max_bytes
        self.key = ""
        self.lost = False
        self._keeps = True
        self._transport: asyncio.Transport | None = None
        self._exchange: _Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._framed = False

    @property
    def usable(self) -> bool:
        """Whether another request may be sent over it."""
        return self._keeps and not self.lost

    def read_key(self) -> None:
        """Note the peer's. Raises UnreadableKeyError, and then the line is dropped."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport else None
        try:
            if tls is None:
                raise UnreadableKeyError("the connection was closed after its handshake")
            self.key = spki_sha256(tls)
        except UnreadableKeyError:
            self.drop()
            raise

    async def exchange(
        self, request: bytes, deadline: float, max_bytes: int, body_wait_s: float | None
    ) -> _Exchange:
        """Send it, and wait for what comes. Anything but a whole answer ends the line."""
        exchange = self._exchange = _Exchange(max_bytes, body_wait_s)
        if self._transport is None:
            exchange.lose(_CLOSED)
        else:
            self._transport.write(request)
        try:
            await exchange.wait(deadline)
        finally:
            self._exchange = None
            if exchange.ending is not Ending.COMPLETE or not self.usable:
                self.drop()
        return exchange

    def drop(self) -> None:
        self._keeps = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.bytes_left -= len(data)
        exchange = self._exchange
        if exchange is None or self.bytes_left < 0:
            self._refuse(exchange, Ending.TOO_LONG)
            return
        exchange.unheard = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            exchange.problem = _NOT_HTTP
            self._refuse(exchange, Ending.CUT_OFF)
        except httptools.HttpParserUpgrade:
            exchange.status, exchange.problem = None, _NOT_HTTP
            self._refuse(exchange, Ending.CUT_OFF)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self._transport = True, None
        if self._exchange is not None:
            reset = isinstance(exc, ConnectionResetError)
            self._exchange.lose("the connection was reset" if reset else _CLOSED)

    def _refuse(self, exchange: _Exchange | None, ending: Ending) -> None:
        if exchange is not None:
            exchange.end(ending)
        self.drop()

    def on_message_begin(self) -> None:
        self._framed = False
        if self._exchange is None or self._exchange.done.done():
            self.drop()  # an answer that nobody asked for

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._exchange is not None and status >= 200:
            self._exchange.begin_body(status, to_the_end=not self._framed)

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.add(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return  # an interim answer: the answer is still to come
        self._keeps = self._keeps and self._parser.should_keep_alive()
        if self._exchange is not None:
            self._exchange.end(Ending.COMPLETE)
