"""Backups of the store beside it: two generations, each whole, or not there.

A copy is made by SQLite's online backup of one consistent state, without keeping a writer waiting;
it is checked before it takes the place of an older one, so that no damage ever replaces what is
sound. Everything here blocks; what a killed copy leaves, the next one removes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from agent.store.integrity import check, open_to_read
from agent.store.port import StoreDamagedError, StoreError
from agent.store.sqlite_errors import translated

_SPARE = 4  # how many times the store's size must be free: a full disk is worse than no backup


class BackupError(StoreError):
    """There is no backup of the present state. The older ones are as they were."""

    @property
    def code(self) -> str:
        return "backup_failed"


def generations(store: Path) -> tuple[Path, Path]:
    """Where the newest and the one before it are kept."""
    return store.with_name(f"{store.name}.backup-1"), store.with_name(f"{store.name}.backup-2")


def backups(store: Path) -> list[Path]:
    """Those that are there, newest first."""
    return [path for path in generations(store) if path.exists()]


def back_up(store: Path) -> None:
    """Make the present state the newest backup; durable when this returns.

    Raises StoreDamagedError if the store is not sound, BackupError if the disk does not let it.
    """
    scratch = store.with_name(f"{store.name}.backup-new")
    try:
        try:
            scratch.unlink(missing_ok=True)
            _need_room(store)
            copy_of(store, scratch)
            _take_its_place(scratch, *generations(store))
            sync(store.parent)
        finally:
            scratch.unlink(missing_ok=True)  # where it is read-only that fails, too
    except (sqlite3.Error, OSError) as error:
        raise _failed(error, store) from error


def _take_its_place(made: Path, newest: Path, older: Path) -> None:
    """What was the newest becomes the older one; from the first backup on there is a newest."""
    if newest.exists():
        spare = newest.with_name(f"{made.name}.older")
        spare.unlink(missing_ok=True)  # of a copy that was killed here
        try:
            spare.hardlink_to(newest)
            spare.replace(older)
        finally:
            spare.unlink(missing_ok=True)  # a rename to another name of the same file leaves both
    made.replace(newest)


def _failed(error: sqlite3.Error | OSError, store: Path) -> StoreError:
    if not store.exists():
        return StoreDamagedError(f"the store {store} is gone")
    if isinstance(error, sqlite3.Error):
        known = translated(error, store, 0)
        if isinstance(known, StoreDamagedError):
            return known
    return BackupError(f"no backup of {store} could be made: {error}")


def _need_room(store: Path) -> None:
    disk = os.statvfs(store.parent)
    free, size = disk.f_bavail * disk.f_frsize, store.stat().st_size
    if free < _SPARE * size:
        found = f"{free >> 10} KiB are free, {_SPARE * size >> 10} KiB are needed"
        raise BackupError(f"no backup of {store} is made: {found}")


def copy_of(store: Path, copy: Path) -> None:
    """A sound, durable file (0600) that needs no log beside it. Raises sqlite3.Error, OSError.

    Nothing but the copy itself is left by a kill: the target has no journal on the disk, and what
    says in its header that it has a log (bytes 18 and 19, sqlite.org/fileformat2.html) is undone.
    """
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with (
        contextlib.closing(open_to_read(store)) as source,
        contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as target,
    ):
        target.execute("PRAGMA journal_mode = MEMORY")
        source.backup(target)
    with copy.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"\x01\x01", 18)
        os.fsync(file.fileno())
    with contextlib.closing(open_to_read(copy)) as made:
        check(made, store)


def sync(path: Path) -> None:
    """Make a file, or what was renamed in a directory, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
