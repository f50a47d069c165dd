"""Clients that keep their connection: requests one after the other, one of them a while under way.

What counts as lost is an answer that broke off: its first byte had come, so that its guest was at
work on it. A connection that ends between two answers is begun anew, as every client does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field

TIMEOUT_S = 60.0
STREAM_S = 0.5
CALM_S = 2.0


class BrokenOffError(Exception):
    """An answer ended before it was whole."""


@dataclass
class KeptClients:
    """So many, on one port of 127.0.0.1. `versions`: who answered, and how often.

    Until they are `busy` they ask only now and then: guests that boot need their processor.
    """

    port: int
    count: int = 3
    busy: asyncio.Event = field(default_factory=asyncio.Event)
    versions: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    whole: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep()) for _ in range(self.count)]

    async def stop(self) -> None:
        """When the answers under way are whole."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self.lost[f"not connected: {error}"] += 1
                continue
            self.connections += 1
            try:
                await self._ask_on(reader, writer)
            except BrokenOffError as error:
                self.lost[str(error)] += 1
            except (OSError, asyncio.IncompleteReadError):
                pass  # before the first byte of an answer
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _ask_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._stop.is_set() and not reader.at_eof():
            body = await _answer(reader, writer, "/")
            self.versions[json.loads(body)["version"]] += 1
            if self.busy.is_set():
                await _answer(reader, writer, f"/stream?seconds={STREAM_S}")
                self.whole += 1
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALM_S):
                    await self.busy.wait()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: hello\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT_S):
        first = await reader.readexactly(1)
        with _whole():
            head = first + await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise BrokenOffError(head.partition(b"\r\n")[0].decode())
            return await _body(reader, head.lower())


@contextlib.contextmanager
def _whole():  # type: ignore[no-untyped-def]
    try:
        yield
    except (OSError, asyncio.IncompleteReadError) as error:
        raise BrokenOffError(f"{type(error).__name__} in the middle of an answer") from error


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head:
        length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
        return await reader.readexactly(int(length))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body
