"""Whose turn it is with devices: one worker a group, and nobody else who uses them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from agent.inventory.preparation.device_ops import DeviceOps
from agent.inventory.preparation.observers import Observers
from agent.model.ids import Bdf


class Turns:
    """`observers`: who is stopped for a turn, if it may be."""

    def __init__(self, device_ops: DeviceOps, observers: Observers) -> None:
        self._device_ops = device_ops
        self._observers = observers
        self._locks: dict[Bdf, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def at(self, devices: Collection[Bdf]) -> AsyncIterator[None]:
        """One worker a group; several are taken in one order, so that none wait in a ring."""
        mates = {mate for bdf in devices for mate in await self._device_ops.mates(bdf)}
        async with contextlib.AsyncExitStack() as stack:
            for bdf in sorted(mates):
                await stack.enter_async_context(self._locks.setdefault(bdf, asyncio.Lock()))
            yield

    @contextlib.asynccontextmanager
    async def unheld(self, devices: Sequence[Bdf]) -> AsyncIterator[None]:
        """Inside, nobody uses these; who only observes them is stopped for it, if it may be."""
        holders = await self._device_ops.prove_unheld(devices, self._observers.may_stop)
        async with self._observers.stopped(holders):
            if holders:
                await self._device_ops.prove_unheld(devices)
            yield
