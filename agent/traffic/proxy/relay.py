"""One relayed connection: what one side says, the other hears, byte for byte and end for end.

Invariants: neither direction holds more than its write buffer (a slow reader stops the fast
writer); the end of one direction is passed on while the other goes on; a reset of one side resets
the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import cast

from agent.model.enclave import Endpoint

QUIET_S = 1.0  # without a byte either way, before nothing counts as under way
_HIGH_WATER = 256 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 300),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


def reset_on_close(sock: socket.socket) -> None:
    """Closing then sends RST and throws away what was not sent."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


class Relay:
    """A client and its endpoint. It counts from the moment the client was accepted.

    `heard_at`: when either side last said something, by the event loop's clock.
    """

    __slots__ = (
        *("_client", "_closed", "_on_end", "_socket", "_spoke_last", "_upstream"),
        *("endpoint", "heard_at"),
    )

    def __init__(
        self, client: socket.socket, endpoint: Endpoint, on_end: Callable[[Relay], None]
    ) -> None:
        self.endpoint = endpoint
        self.heard_at = asyncio.get_running_loop().time()
        self._socket: socket.socket | None = client
        self._client: _Side | None = None
        self._upstream: _Side | None = None
        self._spoke_last: _Side | None = None
        self._on_end = on_end
        self._closed = False

    async def join(self, upstream: socket.socket) -> None:
        """Begin to relay. Takes over both sockets, whatever happens."""
        client, self._socket = self._socket, None
        if client is None:
            upstream.close()
            return
        self._client, self._upstream = _Side(self, client), _Side(self, upstream)
        self._client.peer, self._upstream.peer = self._upstream, self._client
        try:
            await self._client.attach()
            await self._upstream.attach()
        except BaseException:
            self.abort()
            raise
        self._client.begin()
        self._upstream.begin()

    def abort(self) -> None:
        """Reset both sides. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._socket is not None:
            reset_on_close(self._socket)
            self._socket.close()
            self._socket = None
        for side in (self._client, self._upstream):
            if side is not None:
                side.reset()
        self._on_end(self)

    def end(self) -> bool:
        """Close both sides in order if nothing is under way, else reset them; whether it did.

        What the guest has said before it hung up is still written out. A client that spoke last
        waits for an answer, however long ago that was.
        """
        if self._closed or not (self._client and self._upstream and self._is_at_rest()):
            self.abort()
            return True
        self._client.finish()
        self._upstream.finish()
        return False

    def _is_at_rest(self) -> bool:
        assert self._client is not None
        assert self._upstream is not None
        if self._upstream.ended:
            return True
        if self._client.ended or self._spoke_last is self._client:
            return False
        quiet_s = asyncio.get_running_loop().time() - self.heard_at
        return quiet_s >= QUIET_S and not (self._client.holds_back or self._upstream.holds_back)

    def heard(self, side: _Side) -> None:
        """A side said something."""
        self.heard_at = asyncio.get_running_loop().time()
        self._spoke_last = side

    def half_closed(self) -> None:
        """A side has said all; when both have, the connection is over once it is written out."""
        if self._client and self._upstream and self._client.ended and self._upstream.ended:
            self._client.finish()
            self._upstream.finish()

    def side_closed(self, error: BaseException | None) -> None:
        """A side's transport is gone: cleanly (both are finishing) or not."""
        if error is not None:
            self.abort()
        elif not self._closed and self._client and self._upstream:
            self._closed = self._client.gone and self._upstream.gone
            if self._closed:
                self._on_end(self)


class _Side(asyncio.Protocol):
    """One of the two sockets, with its transport once it is attached."""

    __slots__ = ("_begun", "_early", "_relay", "_socket", "_transport", "ended", "gone", "peer")

    peer: _Side

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self._relay = relay
        self._socket = sock
        self._transport: asyncio.Transport | None = None
        self._begun = False
        self._early = bytearray()
        self.ended = False
        self.gone = False

    async def attach(self) -> None:
        for option in _OPTIONS:
            self._socket.setsockopt(*option)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: self, self._socket)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._transport.pause_reading()  # until the other side is there too

    def begin(self) -> None:
        """Both sides are there. Pausing so early is not heeded by every event loop."""
        self._begun = True
        if self._early:
            self.data_received(bytes(self._early))
            self._early.clear()
        if self.ended:
            self._pass_end_on()
        self.go_on()

    def go_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self.ended:
            self._transport.resume_reading()

    def hold(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self.ended:
            self._transport.pause_reading()

    @property
    def holds_back(self) -> bool:
        """Whether something is yet to be written to it."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def data_received(self, data: bytes) -> None:
        self._relay.heard(self)
        if not self._begun:
            self._early += data
        elif self.peer._transport is not None:
            self.peer._transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end on; True keeps the way back open."""
        self.ended = True
        if self._begun:
            self._pass_end_on()
        return True

    def _pass_end_on(self) -> None:
        if self.peer._transport is not None and not self.peer._transport.is_closing():
            self.peer._transport.write_eof()
        self._relay.half_closed()

    def pause_writing(self) -> None:
        self.peer.hold()

    def resume_writing(self) -> None:
        self.peer.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._transport = None
        self._relay.side_closed(exc)

    def finish(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        reset_on_close(self._socket)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._socket.close()
