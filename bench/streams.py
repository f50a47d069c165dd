"""Streams that are reopened as soon as they end, begun evenly over a while."""

from __future__ import annotations

import asyncio

from bench.requests import Asker, Fault

_TLS_EVERY = 5


class Streams:
    """So many at any time; every fifth over TLS. A broken one is reopened after a moment."""

    def __init__(self, asker: Asker, count: int, seconds: float, spread_s: float) -> None:
        self._asker = asker
        self._count = count
        self._seconds = seconds
        self._spread_s = spread_s
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.begun = self.ended = self.failed = self.reset = 0
        self.why: dict[str, int] = {}

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(n)) for n in range(self._count)]

    async def stop(self) -> None:
        """Reopen no more; returns when those that are open have ended by themselves."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _keep(self, number: int) -> None:
        await self._pause(number * self._spread_s / self._count)
        while not self._stopping.is_set():
            self.begun += 1
            try:
                await self._asker.stream(number % _TLS_EVERY == _TLS_EVERY - 1, self._seconds)
            except Fault as fault:
                self.reset += fault.is_reset
                self.failed += not fault.is_reset
                self.why[str(fault)] = self.why.get(str(fault), 0) + 1
                await self._pause(0.5)
            else:
                self.ended += 1

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
