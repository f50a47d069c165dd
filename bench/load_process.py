"""Starts the load's process and speaks to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from bench.generator import ask, generator
from bench.load import Counts, Spec


class LoadProcess:
    """A running load."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tell(self) -> Counts:
        """The counts so far, without latencies."""
        return await self._ask(b"tell\n")

    async def stop(self) -> Counts:
        """End it, once everything under way has ended; the counts with latencies."""
        return await self._ask(b"stop\n")

    async def _ask(self, command: bytes) -> Counts:
        return await ask(self._process, command, Counts)


@contextlib.asynccontextmanager
async def load(spec: Spec) -> AsyncIterator[LoadProcess]:
    """A load that ends with the block at the latest."""
    async with generator("load", spec) as process:
        yield LoadProcess(process)
