"""Sees to it that what is nobody's becomes free: dirty devices, unknown modes, asked-for resets.

It decides when; the work is the preparer's, which proves again that a device is nobody's before it
touches it. What nobody ever asked for is left as it is. A device that does not come clean is left
alone for a while, longer each time, and in the end for good: `retries`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

import msgspec

from agent.errors import AgentError, describe
from agent.host.clock import Clock
from agent.host.wake import Wake
from agent.inventory.preparation.known_devices import note_seen, to_learn
from agent.inventory.preparation.records import (
    DevicePlace,
    distrust,
    note_fault,
    rows_of,
    unowned,
    unowned_dirty,
)
from agent.inventory.preparation.retries import HOUR_S, is_due, pause_s, waits
from agent.model.clock import Instant
from agent.model.ids import Bdf
from agent.model.preparation import GpuCondition
from agent.store.port import Reader, Store, Transaction

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 10.0


class Requalifier:
    """`requalify`: make one free. `modes_matter`: one whose mode is not known is not usable.

    `changed`: rung when a device may have become dirty or free.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        changed: Wake,
        *,
        present: Callable[[], Collection[Bdf]],
        place_of: Callable[[Bdf], DevicePlace | None],
        requalify: Callable[[Bdf], Awaitable[None]],
        modes_matter: bool,
    ) -> None:
        self._store = store
        self._clock = clock
        self._changed = changed
        self._present = present
        self._place_of = place_of
        self._requalify = requalify
        self._modes_matter = modes_matter
        self._waiting: dict[Bdf, tuple[int, Instant]] = {}  # for somebody else: how often, since
        self._cleaning: dict[Bdf, asyncio.Task[None]] = {}

    async def keep(self) -> None:
        """For ever; each device by itself."""
        try:
            while True:
                seen = self._changed.count
                await self.learn()
                await self._heal()
                for bdf in await self._store.read(self._due):
                    task = asyncio.create_task(self._clean(bdf), name=f"requalify:{bdf}")
                    self._cleaning[bdf] = task
                await self._changed.beyond(seen, _LOOK_AGAIN_S)
        finally:
            tasks = list(self._cleaning.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _due(self, tx: Reader) -> list[Bdf]:
        """What is dirty, nobody's, and not to be left alone now."""
        now, rows = self._clock.now(), rows_of(tx)
        return [
            bdf
            for bdf in unowned_dirty(tx)
            if self._may_be_cleaned(bdf)
            and bdf not in self._cleaning
            and is_due(rows[bdf], now)
            and not self._is_waiting(bdf, now)
        ]

    def _is_waiting(self, bdf: Bdf, now: Instant) -> bool:
        count, since = self._waiting.get(bdf, (0, now))
        passed = now.since(since)
        return passed is not None and passed < pause_s(count)

    async def learn(self) -> None:
        """Where modes matter, a device that is asked for and whose mode is not known is
        requalified before its use.

        Else nobody could be given a second GPU of a board: its mode would have to be set, and the
        board is in use by the first.
        """
        if not self._modes_matter:
            return
        places = {
            bdf: place
            for bdf in self._present()
            if self._may_be_cleaned(bdf) and (place := self._place_of(bdf))
        }
        now = self._clock.now()
        if await self._store.read(lambda tx: not places.keys() <= rows_of(tx).keys()):
            await self._store.transact(lambda tx: note_seen(tx, places, now))
        if await self._store.read(lambda tx: to_learn(tx, places)):
            why = "its mode is not known"
            await self._store.transact(lambda tx: distrust(tx, to_learn(tx, places), now, why))

    async def _heal(self) -> None:
        """Have reset what its health asks it for and nobody has, each at most once an hour.

        What an enclave has is reset when that is gone; what nobody asked for is not ours to reset.
        """
        asking = [bdf for bdf in self._present() if self._asks_for_reset(bdf)]
        now = self._clock.now()

        def due(tx: Reader) -> list[Bdf]:
            rows = rows_of(tx)
            known = [bdf for bdf in unowned(tx, asking) if bdf in rows]
            return [bdf for bdf in known if rows[bdf].used and not _healed(rows[bdf], now)]

        def begin(tx: Transaction) -> None:
            devices = due(tx)
            for row in rows_of(tx).values():
                if row.bdf in devices:
                    tx.put_gpu_condition(msgspec.structs.replace(row, healed=now))
            distrust(tx, devices, now, "its health asks for a reset")

        if asking and await self._store.read(due):
            await self._store.transact(begin)

    async def _clean(self, bdf: Bdf) -> None:
        """Try once; after a failure stay away for a while."""
        try:
            await self._requalify(bdf)
            self._waiting.pop(bdf, None)
        except AgentError as error:
            if waits(error):
                await self._wait(bdf, error)
            else:
                log.warning("gpu not requalified", extra={"gpu": bdf, "error": describe(error)})
        finally:
            del self._cleaning[bdf]
            self._changed.notify()

    async def _wait(self, bdf: Bdf, error: AgentError) -> None:
        """Nothing was touched; told in the log once."""
        count, _ = self._waiting.get(bdf, (0, None))
        self._waiting[bdf] = (count + 1, self._clock.now())
        if count == 0:
            log.warning("gpu not requalified yet", extra={"gpu": bdf, "error": describe(error)})
        await self._store.transact(lambda tx: note_fault(tx, bdf, error))

    def _may_be_cleaned(self, bdf: Bdf) -> bool:
        place = self._place_of(bdf)
        if place is None or place.left_alone is not None:
            return False
        return place.viable and not place.quarantined

    def _asks_for_reset(self, bdf: Bdf) -> bool:
        place = self._place_of(bdf)
        return place is not None and place.asks_for_reset and self._may_be_cleaned(bdf)


def _healed(row: GpuCondition, now: Instant) -> bool:
    """Whether it was reset for its health within the hour: another reset mends no more."""
    passed = now.since(row.healed) if row.healed else None
    return passed is not None and passed < HOUR_S
