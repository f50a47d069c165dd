"""TLS on an accepted socket, with buffers that fit what one read can give, and bytes counted.

asyncio zeroes 256 KiB for every TLS connection, so that some hundred idle peers would cost more
than the agent; a record has at most 16 KiB (RFC 8446, section 5.1).

What TLS keeps to itself never reaches HTTP and its bounds: KeyUpdates, of which OpenSSL takes any
number (section 4.6.3), records that are empty or padding, a handshake without end. So what comes
below TLS is held against what comes out of it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any

from agent.door.limits import READ_BYTES, UNREAD_BYTES

_OVERHEAD_BYTES = 64 << 10


class Overhead:
    """How many bytes more may come below TLS than come out of it. Pure.

    What comes out earns as much again, up to what there was at first: a record of HTTP adds 22
    bytes to what is in it.
    """

    def __init__(self, most: int = _OVERHEAD_BYTES) -> None:
        self._most = most
        self._left = most

    def spend(self, came: int, gave: int) -> bool:
        """Whether it was not too much."""
        self._left = min(self._most, self._left - came + 2 * gave)
        return self._left >= 0


class _Counted(ssl.SSLObject):
    """Knows how much it gave since somebody looked."""

    gave = 0

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - its name
        found: Any = super().read(len, buffer)
        self.gave += found if buffer is not None else found.__len__()
        return found


class _Bounded(SSLProtocol):
    """asyncio's own, but for its size and its patience."""

    max_size = READ_BYTES  # of the buffer, and of a read

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        shaken: asyncio.Future[None],
        flooded: Callable[[], None],
    ) -> None:
        super().__init__(loop, protocol, context, shaken, server_side=True)
        self._set_read_buffer_limits(READ_BYTES)  # type: ignore[attr-defined]
        self._set_write_buffer_limits(UNREAD_BYTES)  # type: ignore[attr-defined]
        self._overhead = Overhead()
        self._flooded = flooded

    def buffer_updated(self, nbytes: int) -> None:
        counted: _Counted = self._sslobj  # type: ignore[attr-defined]
        super().buffer_updated(nbytes)
        gave, counted.gave = counted.gave, 0
        transport: Any = self._transport
        if not self._overhead.spend(nbytes, gave) and transport is not None:
            self._flooded()
            transport.abort()


async def accept_tls(
    sock: socket.socket,
    context: ssl.SSLContext,
    protocol: asyncio.Protocol,
    flooded: Callable[[], None],
) -> None:
    """Serve TLS; `protocol` is connected once the handshake is over. Raises ssl.SSLError, OSError.

    `flooded` is called before a connection is dropped for what it sends below TLS. How long the
    handshake may take is the caller's to say. On failure, and when cancelled, the socket is
    closed.
    """
    loop = asyncio.get_running_loop()
    context.sslobject_class = _Counted
    shaken: asyncio.Future[None] = loop.create_future()
    tls = _Bounded(loop, protocol, context, shaken, flooded)
    transport: asyncio.Transport | None = None
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: tls, sock)
        await shaken
    except BaseException:
        shaken.cancel()
        if transport is not None:
            transport.abort()
        raise
