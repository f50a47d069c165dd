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
    connection, data = request.protocol, bytearray()
    async with asyncio.timeout(timeout_s):
        while piece := await request.content.readany():
            data += piece
            if len(data) > max_bytes:
                raise web.HTTPRequestEntityTooLarge(max_bytes, len(data))
            if isinstance(connection, DoorConnection):
                connection.hold_body(len(data))
    return bytes(data)
