"""Starts the client that knocks and speaks to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from agent.model.enclave import Endpoint
from bench.daemon import BenchError
from bench.generator import ask, generator
from bench.knock import Knocks, Spec

_ASK_EVERY_S = 0.25


class Knocker:
    """A client that knocks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answered(self, *, besides: str | None = None, timeout_s: float = 120) -> Knocks:
        """The knocks so far, once anybody, besides this one, gave a healthy answer."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            knocks = await ask(self._process, b"tell\n", Knocks)
            if knocks.healthy.keys() - {besides}:
                return knocks
            await asyncio.sleep(_ASK_EVERY_S)
        raise BenchError(f"nobody gave a healthy answer in {timeout_s:.0f} s")


@contextlib.asynccontextmanager
async def knocking(at: Endpoint) -> AsyncIterator[Knocker]:
    """Knock there until the end of the block."""
    async with generator("knock", Spec(address=at.address, port=at.port)) as process:
        yield Knocker(process)
