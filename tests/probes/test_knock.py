"""Knocking is gentle: a guest sees few handshakes that are aborted, however slow it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.config import ProbesConfig
from agent.model.enclave import Endpoint
from agent.probes.runner import Prober
from simulator.manual_clock import ManualClock
from tests.fakes.tls_guest import TlsGuest
from tests.probes.test_prober import target, until

CONFIG = ProbesConfig(interval_s=2, timeout_s=5, success_threshold=1, failure_threshold=3)
MOST = 5


@asynccontextmanager
async def slow_door(guest: Endpoint, slow_s: float, aborted: list[int]) -> AsyncIterator[Endpoint]:
    """Before a guest: takes connections at once, and lets a handshake begin only after a while.

    So does one whose processors are busy with its boot. Who leaves meanwhile aborted a handshake.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            hello = await reader.read(4096)
            await asyncio.sleep(slow_s)
            if reader.at_eof() or reader.exception() is not None:
                aborted.append(1)
                return
            inner, outer = await asyncio.open_connection(guest.address, guest.port)
            outer.write(hello)
            await asyncio.gather(copy(reader, outer), copy(inner, writer), return_exceptions=True)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    try:
        yield Endpoint(address=address, port=port)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    finally:
        writer.transport.abort()


async def test_a_slow_guest_sees_at_most_a_handful_of_aborted_handshakes() -> None:
    guest, aborted = TlsGuest(), list[int]()
    endpoint = await guest.start()
    prober = Prober(CONFIG, ManualClock())
    try:
        async with slow_door(endpoint, 1.5, aborted) as door:
            prober.watch(target(door))
            await until(prober, lambda view: view.answered)
            await asyncio.sleep(1.6)  # those that were given up are seen by the door
        assert len(aborted) <= MOST
    finally:
        await prober.close()
        await guest.stop()
