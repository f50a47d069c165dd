"""Sees to it that what is nobody's becomes free: dirty devices, unknown modes, asked-for resets.

It decides when; the work is the preparer's, which proves again that a device is nobody's before it
touches it. A device that does not come clean is left alone for a while, longer each time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from agent.errors import AgentError, describe
from agent.host.clock import Clock
from agent.host.wake import Wake
from agent.inventory.preparation.records import (
    DevicePlace,
    distrust,
    unknown,
    unowned,
    unowned_dirty,
)
from agent.model.clock import Instant
from agent.model.ids import Bdf
from agent.store.port import Store, Transaction

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 10.0
_BACKOFF_S, _BACKOFF_AT_MOST_S = 10.0, 300.0
_HEALED_EVERY_S = 3600.0  # what a reset did not mend is not mended by another a moment later


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
        self._failures: dict[Bdf, int] = {}
        self._cleaning: dict[Bdf, asyncio.Task[None]] = {}
        self._healed: dict[Bdf, Instant] = {}

    async def keep(self) -> None:
        """For ever; each device by itself."""
        try:
            while True:
                seen = self._changed.count
                await self.learn()
                await self._heal()
                for bdf in await self._store.read(unowned_dirty):
                    if self._may_be_cleaned(bdf) and bdf not in self._cleaning:
                        task = asyncio.create_task(self._clean(bdf), name=f"requalify:{bdf}")
                        self._cleaning[bdf] = task
                await self._changed.beyond(seen, _LOOK_AGAIN_S)
        finally:
            tasks = list(self._cleaning.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def learn(self) -> None:
        """Where modes matter, a device whose mode is not known is requalified before its use.

        Else nobody could be given a second GPU of a board: its mode would have to be set, and the
        board is in use by the first.
        """
        if not self._modes_matter:
            return
        present = [bdf for bdf in self._present() if self._may_be_cleaned(bdf)]
        now = self._clock.now()
        if await self._store.read(lambda tx: unknown(tx, present)):
            why = "its mode is not known"
            await self._store.transact(lambda tx: distrust(tx, unknown(tx, present), now, why))

    async def _heal(self) -> None:
        """Have reset what its health asks it for and nobody has, each at most once an hour.

        What an enclave has is reset when that is gone.
        """
        now = self._clock.now()
        self._healed = {
            bdf: at
            for bdf, at in self._healed.items()
            if (passed := now.since(at)) is not None and passed < _HEALED_EVERY_S
        }
        asking = [bdf for bdf in self._present() if self._asks_for_reset(bdf)]
        asking = [bdf for bdf in asking if bdf not in self._healed]
        if not asking:
            return

        def begin(tx: Transaction) -> list[Bdf]:
            free = unowned(tx, asking)
            distrust(tx, free, now, "its health asks for a reset")
            return free

        self._healed |= dict.fromkeys(await self._store.transact(begin), now)

    async def _clean(self, bdf: Bdf) -> None:
        """Try once; after a failure stay away for a while, longer each time."""
        try:
            await self._requalify(bdf)
            self._failures.pop(bdf, None)
        except AgentError as error:
            log.warning("gpu not requalified", extra={"gpu": bdf, "error": describe(error)})
            if not self._may_be_cleaned(bdf):
                return  # nothing is tried before a person has lifted that
            failed = self._failures[bdf] = self._failures.get(bdf, 0) + 1
            await asyncio.sleep(min(_BACKOFF_S * 2 ** min(failed - 1, 8), _BACKOFF_AT_MOST_S))
        finally:
            del self._cleaning[bdf]
            self._changed.notify()

    def _may_be_cleaned(self, bdf: Bdf) -> bool:
        place = self._place_of(bdf)
        return place is not None and place.viable and not place.quarantined

    def _asks_for_reset(self, bdf: Bdf) -> bool:
        place = self._place_of(bdf)
        return place is not None and place.asks_for_reset and self._may_be_cleaned(bdf)
