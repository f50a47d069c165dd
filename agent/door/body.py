"""The body of a request: bounded in bytes and time, and counted while it comes."""

from __future__ import annotations

import asyncio

from aiohttp import web

from agent.door.connection import DoorConnection


async def read_bounded(request: web.Request, max_bytes: int, timeout_s: float) -> bytes:
    """All of it. Raises TimeoutError, web.HTTPRequestEntityTooLarge, and what aiohttp raises for
    a body that cannot be read or a connection that is gone.
    """
    if request.content_length is not None and request.content_length > max_bytes:
        raise web.HTTPRequestEntityTooLarge(max_bytes, request.content_length)
    connection, size = request.protocol, 0
    pieces: list[bytes] = []  # one buffer that grows would be moved again and again
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                if request.transport is None:
                    raise ConnectionResetError("it went before the end of its body")
                piece = await request.content.readany()
                if not piece:
                    return b"".join(pieces)
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    raise web.HTTPRequestEntityTooLarge(max_bytes, size)
                if isinstance(connection, DoorConnection):
                    connection.hold_body(size)
    finally:
        # What is raised refers to this frame, and the reader to what was raised.
        pieces.clear()
        piece = b""
