"""What a client does: connect, say a line, hear the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agent.model.resources import Listen

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(listen: Listen) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(listen.address, listen.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def say(streams: Streams, line: str) -> str:
    reader, writer = streams
    writer.write(line.encode() + b"\n")
    await writer.drain()
    answer = await reader.readline()
    if not answer.endswith(b"\n"):
        raise ConnectionResetError("the connection ended instead of an answer")
    return answer.decode().strip()


async def who(streams: Streams) -> str:
    """The guest that answers."""
    return (await say(streams, "who")).split()[0]


async def ask(listen: Listen) -> str:
    """The guest that takes a new connection."""
    async with connected(listen) as streams:
        return await who(streams)


async def asks(listen: Listen, times: int, whom: str) -> int:
    """So many new connections, one after the other, all of which `whom` takes."""
    for _ in range(times):
        assert await ask(listen) == whom
    return times
