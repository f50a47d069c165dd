"""Keeps a backup of the store, and tells when the store is damaged.

Each round reads the file anew, off the event loop: what was scribbled over pages that SQLite has
in its cache, or over a store that nobody writes to, is seen within one interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from agent.errors import describe
from agent.host.threads import finish_in_thread
from agent.store.backup import back_up
from agent.store.integrity import check_file
from agent.store.port import StoreDamagedError, StoreError
from agent.store.sqlite import SqliteStore
from agent.updates.snapshot.publisher import SnapshotPublisher

log = logging.getLogger(__name__)

_PROBLEM = "backup"


class StoreKeeper:
    """One a store. `run` is a task's; `close` ends it with a last backup."""

    def __init__(
        self, store: SqliteStore, publisher: SnapshotPublisher, interval_s: float
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._interval_s = interval_s
        self._backed_up: int | None = None  # the commits that the newest backup has

    async def run(self) -> None:
        """A backup now, then after changes at most every interval. Returns when it is damaged."""
        while not self._store.damaged.is_set():
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._store.damaged.wait()
        damage = self._store.damage
        assert damage is not None
        log.error("store damaged, left as it is", extra={"error": describe(damage)})
        self._publisher.show_store_damaged(describe(damage))

    async def close(self) -> None:
        """Once nobody writes any more: have what is recorded in the newest backup."""
        if not self._store.damaged.is_set() and self._store.commits != self._backed_up:
            await self._look()

    async def _look(self) -> None:
        commits = self._store.commits
        changed = commits != self._backed_up
        try:
            await finish_in_thread(back_up if changed else check_file, self._store.path)
        except StoreDamagedError as error:
            self._store.found_damaged(error)
        except StoreError as error:
            if self._publisher.raise_problem(
                _PROBLEM,
                code=error.code,
                severity="warning",
                detail=describe(error),
                mend="have room in state_dir, and have it writable; it is tried again",
            ):
                log.warning("no backup of the store", extra={"error": describe(error)})
        else:
            self._backed_up = commits
            self._publisher.clear_problem(_PROBLEM)
