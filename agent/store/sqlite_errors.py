"""What SQLite says went wrong, as the errors of the port."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from agent.store.port import (
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
)

_PRIMARY = 0xFF  # the low byte of an extended result code


def translated(error: sqlite3.Error, path: Path, busy_timeout_s: float) -> StoreError:
    """The error of the port for one that came of the store at `path`."""
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    match extended & _PRIMARY:
        case sqlite3.SQLITE_FULL:
            return StoreFullError(f"no space left for the store {path}")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if _is_full(path):
            return StoreFullError(f"no space left for the store {path}")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if (
            _is_read_only(path)
        ):
            return StoreReadOnlyError(f"the file system of the store {path} is read-only")
        case sqlite3.SQLITE_NOTADB:
            return StoreDamagedError(f"the file {path} is not a store")
        case sqlite3.SQLITE_CORRUPT:
            return StoreDamagedError(f"the store {path} is damaged")
        case sqlite3.SQLITE_BUSY:
            return StoreError(f"another process held the store {path} for {busy_timeout_s:g} s")
        case sqlite3.SQLITE_CONSTRAINT:
            return StoreError("a row would belong to something that is not in the store")
    return StoreError(f"the store {path} failed")


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _is_full(path: Path) -> bool:
    try:
        free = os.statvfs(path.parent)
    except OSError:
        return False
    return free.f_bavail * free.f_frsize < 64 * 1024 or (free.f_files > 0 and free.f_favail == 0)
