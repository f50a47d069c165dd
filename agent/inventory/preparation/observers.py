"""Services that only observe GPUs, stopped for a preparation that they hinder and started again.

Only those that the configuration names, and only while nobody else hinders it. Which were stopped
is durable before the first is, so that a crash leaves none of them down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection

from agent.host.commands import CommandError, RunCommand, run_command
from agent.inventory.preparation.errors import Holder
from agent.store.port import Store, Transaction

log = logging.getLogger(__name__)

_STOPPED = "gpu_units_stopped"  # a key of the store's meta table
_WITHIN_S = 100.0  # longer than a unit is given by default (DefaultTimeoutStopSec)


class Observers:
    """`units`: those that may be stopped."""

    def __init__(
        self, store: Store, units: Collection[str] = (), *, run: RunCommand = run_command
    ) -> None:
        self._store = store
        self._units = frozenset(units)
        self._run = run
        self._away = Counter[str]()  # for how many preparations each is down
        self._turn = asyncio.Lock()

    def may_stop(self, holder: Holder) -> bool:
        """Whether this holder is a service that may be stopped."""
        return holder.unit in self._units

    async def start_again(self) -> None:
        """After a crash: whatever was stopped."""
        stopped = await self._store.read(lambda tx: json.loads(tx.meta(_STOPPED) or "[]"))
        if stopped:
            await self._start(stopped)

    @contextlib.asynccontextmanager
    async def stopped(self, holders: Collection[Holder]) -> AsyncIterator[None]:
        """Inside, the units of these are down, if they may be.

        So are those that are down for another preparation: they must not come up in the middle of
        this one, and look at its device.
        """
        wanted = {one.unit for one in holders if one.unit and self.may_stop(one)}
        units = sorted(wanted | {unit for unit, count in self._away.items() if count > 0})
        if not units:
            yield
            return
        fresh = [unit for unit in units if self._away[unit] <= 0]
        self._away.update(units)
        try:
            async with self._turn:
                if fresh:
                    await self._store.transact(lambda tx: _note(tx, add=fresh))
                    await self._systemctl("stop", fresh)
            yield
        finally:
            self._away.subtract(units)
            async with self._turn:
                await self._start([unit for unit in units if self._away[unit] <= 0])

    async def _start(self, units: list[str]) -> None:
        """One that does not come up again (it may have nothing to observe) is only told."""
        if not units:
            return
        await self._systemctl("start", units)
        await self._store.transact(lambda tx: _note(tx, drop=units))

    async def _systemctl(self, verb: str, units: list[str]) -> None:
        for unit in units:
            told = {"unit": unit, "verb": verb}
            try:
                done = await self._run(["systemctl", verb, "--", unit], timeout_s=_WITHIN_S)
            except CommandError as error:
                log.warning("unit not changed", extra={**told, "error": str(error)})
                continue
            if done.status != 0:
                log.warning("unit not changed", extra={**told, "error": done.complaint})
            else:
                log.info("unit changed for a gpu", extra=told)


def _note(tx: Transaction, add: Collection[str] = (), drop: Collection[str] = ()) -> None:
    before = set(json.loads(tx.meta(_STOPPED) or "[]"))
    tx.set_meta(_STOPPED, json.dumps(sorted((before | set(add)) - set(drop))))
