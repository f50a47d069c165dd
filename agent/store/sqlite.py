"""The durable store: one SQLite file in WAL mode with synchronous=FULL.

One thread owns the writing connection, another the reading one, so that the event loop waits for
no disk and a reader for no writer. A transaction holds the file's write lock from its beginning:
what it reads, nobody changes before it ends. After an error nothing of the transaction is in the
file and the store goes on; a connection that cannot even roll back is replaced.

Damage is looked for before the file is opened for writing, and latched when it is met: from then
on nothing is read from it and nothing written to it, not even what closing would, so that whoever
wants to see the file finds it as it was.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from agent.model.clock import Instant
from agent.store.backup import backups
from agent.store.integrity import check_file
from agent.store.lane import Lane
from agent.store.migrations import migrate
from agent.store.port import (
    Reader,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    Transaction,
)
from agent.store.retention import EVENTS_KEPT
from agent.store.sqlite_errors import translated
from agent.store.sqlite_rows import SqliteReader, SqliteTransaction

T = TypeVar("T")

_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -512",
    "PRAGMA journal_size_limit = 4194304",
)
STORE_FILE = "agent.db"  # in the state directory
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class SqliteStore:
    """Implements `agent.store.port.Store`. Made by `open`."""

    def __init__(
        self, path: Path, now: Callable[[], Instant], events_kept: int, busy_timeout_s: float
    ) -> None:
        self._path = path
        self._now = now
        self._events_kept = events_kept
        self._busy_timeout_s = busy_timeout_s
        self._writer = Lane("store-write", self._create)
        self._reader = Lane("store-read", lambda: self._connect("ro"))
        self._made = False
        self.commits = 0  # tells whether something was written since
        self.damage: StoreDamagedError | None = None
        self.damaged = asyncio.Event()

    @property
    def path(self) -> Path:
        return self._path

    @classmethod
    async def open(
        cls,
        path: Path,
        now: Callable[[], Instant],
        *,
        events_kept: int = EVENTS_KEPT,
        busy_timeout_s: float = 5.0,
    ) -> Self:
        """Open the file, or make it (0600, in a directory that is there), and migrate it.

        A writer waits at most `busy_timeout_s` for one in another process. Raises
        StoreVersionError for a newer file and for one of something else, StoreDamagedError for one
        that is damaged, or gone although there is a backup of it (all three are left as they
        are), StoreError otherwise.
        """
        store = cls(path, now, events_kept, busy_timeout_s)
        try:
            await store._writer.run(store._migrate)
        except BaseException:
            await store.close()
            raise
        return store

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Run `work` on one consistent state, without waiting for a writer."""

        def job(connection: sqlite3.Connection) -> T:
            reader = SqliteReader(connection, self._now)
            return self._in_transaction(self._reader, connection, "BEGIN", lambda: work(reader))

        return await self._run(self._reader, job)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` with the write lock held; durable when this returns."""

        def job(connection: sqlite3.Connection) -> T:
            transaction = SqliteTransaction(connection, self._now, self._events_kept)
            result = self._in_transaction(
                self._writer, connection, "BEGIN IMMEDIATE", lambda: work(transaction)
            )
            self.commits += 1
            return result

        return await self._run(self._writer, job)

    async def close(self) -> None:
        """Finish what was begun and close the file."""
        lanes = [self._reader, self._writer]
        if self.damage is not None:
            lanes.reverse()  # the last to go carries the log over into the file, if it may write
        try:
            await lanes[0].close()
        finally:
            await lanes[1].close()

    def found_damaged(self, error: StoreDamagedError) -> None:
        """Somebody who looked at the file met damage: touch it no more."""
        self.damage = self.damage or error
        self.damaged.set()

    async def _run(self, lane: Lane, job: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await lane.run(job)
        except StoreDamagedError as error:
            self.found_damaged(error)
            raise

    def _in_transaction(
        self, lane: Lane, connection: sqlite3.Connection, begin: str, work: Callable[[], T]
    ) -> T:
        if self.damage is not None:
            raise StoreDamagedError(str(self.damage))
        try:
            connection.execute(begin)
            result = work()
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(lane, connection)
            raise translated(error, self._path, self._busy_timeout_s) from error
        except StopIteration as error:  # no future can carry one
            _roll_back(lane, connection)
            raise RuntimeError("the callback raised StopIteration") from error
        except BaseException:
            _roll_back(lane, connection)
            raise
        return result

    def _create(self) -> sqlite3.Connection:
        if not self._made:
            self._look_before()
            self._make_file()
            self._made = True
        return self._connect("rw")

    def _look_before(self) -> None:
        """See that the file is sound, or that there was never one."""
        if self._path.exists() and self._path.stat().st_size > 0:
            check_file(self._path, self._busy_timeout_s)
        elif backups(self._path):
            raise StoreDamagedError(f"the store {self._path} is gone, and a backup of it is there")

    def _connect(self, mode: str) -> sqlite3.Connection:
        """Open the file that is there; one that vanished is not made anew."""
        try:
            connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode={mode}",
                timeout=self._busy_timeout_s,
                isolation_level=None,
                uri=True,
            )
        except sqlite3.Error as error:
            raise translated(error, self._path, self._busy_timeout_s) from error
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except sqlite3.Error as error:
            connection.close()
            raise translated(error, self._path, self._busy_timeout_s) from error
        return connection

    def _make_file(self) -> None:
        """Make it private; SQLite gives its write-ahead log the same mode.

        One that is there is not even opened: closing a second descriptor of it would drop the
        locks that the connections of this process hold.
        """
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            raise _kind_of(error)(
                f"cannot make the store {self._path}: {error.strerror}"
            ) from error

    def _migrate(self, connection: sqlite3.Connection) -> None:
        try:
            migrate(connection)
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.Error as error:
            raise translated(error, self._path, self._busy_timeout_s) from error
        if mode != "wal":
            raise StoreError(f"the store {self._path} cannot use a write-ahead log here")


def _kind_of(error: OSError) -> type[StoreError]:
    if error.errno == errno.EROFS:
        return StoreReadOnlyError
    return StoreFullError if error.errno in _NO_SPACE else StoreError


def _roll_back(lane: Lane, connection: sqlite3.Connection) -> None:
    """Undo, or throw the connection away: SQLite undoes what a closed connection had begun."""
    if not connection.in_transaction:
        return
    try:
        connection.execute("ROLLBACK")
    except sqlite3.Error:
        lane.drop()
