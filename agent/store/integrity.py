"""Whether a file is a whole store: its pages hang together and every row can be read.

It is opened for reading only, so that looking changes nothing of it: a connection that may write
would carry the log over into the file when it is closed. What SQLite keeps no checksum of (bits
that changed within a row, and still make one) is not seen here; of events the chain shows it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec

from agent.model.enclave import Enclave
from agent.model.event import Event
from agent.model.gpu import KnownGpu
from agent.model.lease import Lease
from agent.model.preparation import GpuCondition
from agent.model.revision import Deployment, Revision
from agent.model.update import Update
from agent.store.migrations import MIGRATIONS, steps_taken
from agent.store.port import KeptAnswer, StoreDamagedError, StoreError
from agent.store.rows import decode
from agent.store.sqlite_errors import translated

_BUSY_S = 5.0
_ROWS: dict[str, type[msgspec.Struct]] = {
    "deployments": Deployment,
    "revisions": Revision,
    "updates": Update,
    "enclaves": Enclave,
    "leases": Lease,
    "events": Event,
    "answers": KeptAnswer,
    "known_gpus": KnownGpu,
    "gpu_conditions": GpuCondition,
}


def check_file(path: Path, busy_timeout_s: float = _BUSY_S) -> None:
    """Raise StoreDamagedError if it is not sound, or gone; StoreVersionError if it is another's.

    One that another process is just making is sound. Blocks while all of it is read.
    """
    try:
        with contextlib.closing(open_to_read(path, busy_timeout_s)) as connection:
            check(connection, path)
    except sqlite3.Error as error:
        if not path.exists():
            raise StoreDamagedError(f"the store {path} is gone") from error
        raise translated(error, path, busy_timeout_s) from error


def open_to_read(path: Path, busy_timeout_s: float = _BUSY_S) -> sqlite3.Connection:
    """A connection that can only read. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, timeout=busy_timeout_s, isolation_level=None, uri=True)


def check(connection: sqlite3.Connection, path: Path) -> None:
    """The same of a connection. Raises sqlite3.Error too."""
    connection.execute("BEGIN")
    if steps_taken(connection, len(MIGRATIONS)) == 0:
        return
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise StoreDamagedError(f"the store {path} is damaged: {' '.join(str(said).split())}")
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for table, kind in _ROWS.items():
        if table not in there:
            continue  # of an older agent, to be migrated
        for (body,) in connection.execute(f"SELECT body FROM {table}"):  # noqa: S608 - our names
            _read_back(body, kind, path)


def _read_back(body: object, kind: type[msgspec.Struct], path: Path) -> None:
    if not isinstance(body, bytes):
        raise StoreDamagedError(f"the store {path} is damaged: a row is not bytes")
    try:
        decode(body, kind)
    except StoreError as error:
        raise StoreDamagedError(f"the store {path} is damaged") from error
