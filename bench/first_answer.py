"""When a guest is first healthy: its boot stages complete and its health path answers 200.

What asks it must cost a booting guest as little as it can: one TLS connection once it answers,
kept; before that, short attempts that overlap, since one that hangs proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl

from agent.model.enclave import Endpoint
from bench.requests import tls_context

_EVERY_S = 0.05
_ATTEMPT_S = 0.4
_STAGES = "/.well-known/tinfoil-boot-stages"
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def healthy(endpoint: Endpoint, health_path: str, timeout_s: float = 60) -> None:
    """Returns at the first healthy answer. Raises TimeoutError."""
    context = tls_context()
    async with asyncio.timeout(timeout_s):
        streams = await _first_connection(endpoint, context)
        try:
            for path, is_good in ((_STAGES, _is_complete), (health_path, _is_there)):
                while not is_good(*await _get(streams, path)):
                    await asyncio.sleep(_EVERY_S)
        finally:
            streams[1].transport.abort()


async def _first_connection(endpoint: Endpoint, context: ssl.SSLContext) -> _Streams:
    """The first connection on which the guest shows a certificate and answers."""
    attempts: set[asyncio.Task[_Streams | None]] = set()
    try:
        while True:
            attempts.add(asyncio.create_task(_attempt(endpoint, context)))
            done, attempts = await asyncio.wait(
                attempts, timeout=_EVERY_S, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if streams := task.result():
                    return streams
            if done:
                await asyncio.sleep(_EVERY_S)
    finally:
        for task in attempts:
            task.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)


async def _attempt(endpoint: Endpoint, context: ssl.SSLContext) -> _Streams | None:
    streams: _Streams | None = None
    try:
        async with asyncio.timeout(_ATTEMPT_S):
            streams = await asyncio.open_connection(endpoint.address, endpoint.port, ssl=context)
            await _get(streams, _STAGES)
            return streams
    except (OSError, EOFError, TimeoutError, ValueError):
        if streams:
            streams[1].transport.abort()
        return None


async def _get(streams: _Streams, path: str) -> tuple[int, bytes]:
    """Status and body of one request on a kept connection."""
    reader, writer = streams
    writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    return status, await reader.readexactly(length)


def _is_complete(status: int, body: bytes) -> bool:
    with contextlib.suppress(ValueError):
        at = (
            json.loads(body).get("completed_at") or "0001"
        )  # as the guest's language has it, unset
        return status == http.client.OK and not at.startswith("0001")
    return False


def _is_there(status: int, _body: bytes) -> bool:
    return status == http.client.OK
