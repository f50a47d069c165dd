"""TLS on an accepted socket, with a buffer that fits what one read can give.

asyncio zeroes 256 KiB for every TLS connection, so that some hundred idle peers would cost more
than the agent; a record has at most 16 KiB (RFC 8446, section 5.1). uvloop shares one buffer.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio.sslproto import SSLProtocol


class _OneRecord(SSLProtocol):
    """asyncio's own, but for its size."""

    max_size = 16 << 10  # of the buffer, and of a read


async def accept_tls(
    sock: socket.socket, context: ssl.SSLContext, protocol: asyncio.Protocol
) -> None:
    """Serve TLS; `protocol` is connected once the handshake is over. Raises ssl.SSLError, OSError.

    How long that may take is the caller's to say. On failure, and when cancelled, the socket is
    closed.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        await loop.connect_accepted_socket(lambda: protocol, sock, ssl=context)
        return
    shaken: asyncio.Future[None] = loop.create_future()
    tls = _OneRecord(loop, protocol, context, shaken, server_side=True)
    transport: asyncio.Transport | None = None
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: tls, sock)
        await shaken
    except BaseException:
        shaken.cancel()
        if transport is not None:
            transport.abort()
        raise
