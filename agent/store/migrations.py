"""The schema of the SQLite store, as the steps that lead to it.

A step that was released is never changed; a new one is appended. `user_version` counts the steps
taken, `application_id` tells our file from anybody else's. Rows are JSON bodies beside the columns
that are searched or constrained.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agent.store.port import StoreVersionError

APPLICATION_ID = 0x454E434C

Migration = tuple[str, ...]

_FIRST: Migration = (
    "CREATE TABLE deployments (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE revisions (
        deployment TEXT NOT NULL REFERENCES deployments (name)
            ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
        number INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (deployment, number)
    ) WITHOUT ROWID""",
    """CREATE TABLE updates (
        position INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        deployment TEXT NOT NULL REFERENCES deployments (name)
            ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
        running INTEGER NOT NULL,
        body BLOB NOT NULL
    )""",
    "CREATE INDEX updates_of ON updates (deployment, position)",
    "CREATE INDEX updates_running ON updates (deployment, position) WHERE running",
    """CREATE TABLE enclaves (
        id TEXT PRIMARY KEY,
        deployment TEXT NOT NULL REFERENCES deployments (name) DEFERRABLE INITIALLY DEFERRED,
        body BLOB NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX enclaves_of ON enclaves (deployment)",
    """CREATE TABLE claims (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        holder TEXT NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX claims_of ON claims (holder)",
    "CREATE TABLE leases (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE secret_versions (
        deployment TEXT NOT NULL REFERENCES deployments (name)
            ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (deployment, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE samples (
        position INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        value_s REAL NOT NULL
    )""",
    "CREATE INDEX samples_of ON samples (kind, key, position)",
    "CREATE TABLE events (sequence INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE pruned (sequence INTEGER NOT NULL, hash TEXT NOT NULL)",
    """CREATE TABLE answers (
        caller TEXT NOT NULL,
        method TEXT NOT NULL,
        path TEXT NOT NULL,
        key TEXT NOT NULL,
        kept_at REAL NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (caller, method, path, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX answers_by_age ON answers (kept_at)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)

_KNOWN_GPUS: Migration = (
    "CREATE TABLE known_gpus (key TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
)

_GPU_CONDITIONS: Migration = (
    "CREATE TABLE gpu_conditions (bdf TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
)

_SECRET_DIGESTS: Migration = (
    """CREATE TABLE secret_digests (
        deployment TEXT NOT NULL REFERENCES deployments (name)
            ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (deployment, name, version)
    ) WITHOUT ROWID""",
    """INSERT INTO secret_digests (deployment, name, version, digest)
        SELECT deployment, name, version, digest FROM secret_versions""",
)

_IDENTITIES: Migration = (
    """CREATE TABLE identities (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID""",
)

MIGRATIONS: tuple[Migration, ...] = (
    _FIRST,
    _KNOWN_GPUS,
    _GPU_CONDITIONS,
    _SECRET_DIGESTS,
    _IDENTITIES,
)


def migrate(connection: sqlite3.Connection, steps: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the file to the newest schema, in one transaction: all steps or none.

    Raises StoreVersionError for a file of a newer agent and for one that is not a store, both
    before anything is written; sqlite3.Error as it comes.
    """
    if steps_taken(connection, len(steps)) == len(steps):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        taken = steps_taken(connection, len(steps))
        for step in steps[taken:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def steps_taken(connection: sqlite3.Connection, known: int) -> int:
    """How many of them the file has; 0: it is empty. Raises StoreVersionError, sqlite3.Error."""
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreVersionError("the file is a database of something else, not a store")
    if version > known:
        raise StoreVersionError(
            f"the store has schema {version}, this agent knows up to {known}: "
            "a newer agent wrote it"
        )
    return version
