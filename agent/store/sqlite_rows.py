"""Rows in SQLite: the queries of a transaction, which whoever made it has begun and will end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

import msgspec

from agent.model.clock import Instant, oldest_first
from agent.model.enclave import Enclave
from agent.model.event import GENESIS, Event, EventDraft, chain
from agent.model.gpu import KnownGpu
from agent.model.identity import Identity
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId, UpdateId
from agent.model.lease import Claim, ClaimKind, Lease, Sample
from agent.model.preparation import GpuCondition
from agent.model.revision import Deployment, Revision
from agent.model.update import Update
from agent.store.port import ClaimTakenError, K, KeptAnswer, StoreError
from agent.store.retention import (
    SAMPLES_KEPT,
    UPDATES_KEPT,
    answers_expired_before,
    event_time,
    superfluous_digests,
    superfluous_revisions,
)
from agent.store.rows import decode, encode

R = TypeVar("R", bound=msgspec.Struct)


class SqliteReader:
    """Implements `agent.store.port.Reader`."""

    def __init__(self, connection: sqlite3.Connection, now: Callable[[], Instant]) -> None:
        self._connection = connection
        self._now = now

    def _all(self, kind: type[R], sql: str, *values: str | int) -> list[R]:
        return [decode(body, kind) for (body,) in self._connection.execute(sql, values)]

    def _one(self, kind: type[R], sql: str, *values: str | int) -> R | None:
        return next(iter(self._all(kind, sql, *values)), None)

    def deployments(self) -> list[Deployment]:
        return self._all(Deployment, "SELECT body FROM deployments ORDER BY name")

    def deployment(self, name: DeploymentName) -> Deployment | None:
        return self._one(Deployment, "SELECT body FROM deployments WHERE name = ?", name)

    def revision(self, name: DeploymentName, number: int) -> Revision | None:
        sql = "SELECT body FROM revisions WHERE deployment = ? AND number = ?"
        return self._one(Revision, sql, name, number)

    def revisions(self, name: DeploymentName) -> list[Revision]:
        sql = "SELECT body FROM revisions WHERE deployment = ? ORDER BY number DESC"
        return self._all(Revision, sql, name)

    def update(self, update_id: UpdateId) -> Update | None:
        return self._one(Update, "SELECT body FROM updates WHERE id = ?", update_id)

    def updates(self, name: DeploymentName, limit: int = 50) -> list[Update]:
        sql = "SELECT body FROM updates WHERE deployment = ? ORDER BY position DESC LIMIT ?"
        return self._all(Update, sql, name, limit)

    def running_update(self, name: DeploymentName) -> Update | None:
        sql = "SELECT body FROM updates WHERE deployment = ? AND running ORDER BY position DESC"
        return self._one(Update, sql + " LIMIT 1", name)

    def enclaves(self, name: DeploymentName | None = None) -> list[Enclave]:
        if name is None:
            rows = self._all(Enclave, "SELECT body FROM enclaves")
        else:
            rows = self._all(Enclave, "SELECT body FROM enclaves WHERE deployment = ?", name)
        return oldest_first(rows)

    def enclave(self, enclave_id: EnclaveId) -> Enclave | None:
        return self._one(Enclave, "SELECT body FROM enclaves WHERE id = ?", enclave_id)

    def claims(self) -> list[Claim]:
        sql = "SELECT kind, key, holder FROM claims ORDER BY kind, key"
        return [Claim(kind=k, key=key, holder=h) for k, key, h in self._connection.execute(sql)]

    def leases(self) -> list[Lease]:
        rows = self._all(Lease, "SELECT body FROM leases")
        return oldest_first(rows)

    def gpu_conditions(self) -> list[GpuCondition]:
        return self._all(GpuCondition, "SELECT body FROM gpu_conditions ORDER BY bdf")

    def known_gpus(self) -> list[KnownGpu]:
        return self._all(KnownGpu, "SELECT body FROM known_gpus ORDER BY key")

    def identities(self, kind: type[K]) -> list[K]:
        sql = "SELECT body FROM identities WHERE kind = ? ORDER BY key"
        return self._all(kind, sql, kind.__name__)

    def secret_versions(self, name: DeploymentName) -> dict[str, tuple[int, str]]:
        sql = "SELECT name, version, digest FROM secret_versions WHERE deployment = ?"
        rows = self._connection.execute(sql, (name,))
        return {secret: (version, digest) for secret, version, digest in rows}

    def secret_digests(self, name: DeploymentName) -> dict[tuple[str, int], str]:
        sql = "SELECT name, version, digest FROM secret_digests WHERE deployment = ?"
        rows = self._connection.execute(sql, (name,))
        return {(secret, version): digest for secret, version, digest in rows}

    def samples(self, kind: str, key: str, limit: int = 50) -> list[float]:
        sql = "SELECT value_s FROM samples WHERE kind = ? AND key = ? ORDER BY position DESC"
        return [row[0] for row in self._connection.execute(sql + " LIMIT ?", (kind, key, limit))]

    def events(self, after: int, limit: int = 1000) -> list[Event]:
        sql = "SELECT body FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?"
        return self._all(Event, sql, after, limit)

    def event_bounds(self) -> tuple[int, int]:
        pruned, _ = self.checkpoint()
        (newest,) = self._connection.execute("SELECT max(sequence) FROM events").fetchone()
        return pruned + 1, newest if newest is not None else pruned

    def event_count(self, after: int) -> int:
        sql = "SELECT count(*) FROM events WHERE sequence > ?"
        return int(self._connection.execute(sql, (after,)).fetchone()[0])

    def sequence_before_newest(self, count: int) -> int:
        sql = "SELECT sequence FROM events ORDER BY sequence DESC LIMIT 1 OFFSET ?"
        row = self._connection.execute(sql, (count,)).fetchone()
        return int(row[0]) if row else self.checkpoint()[0]

    def checkpoint(self) -> tuple[int, str]:
        row = self._connection.execute("SELECT sequence, hash FROM pruned").fetchone()
        return (row[0], row[1]) if row else (0, GENESIS)

    def answer(self, caller: str, method: str, path: str, key: str) -> KeptAnswer | None:
        row = self._connection.execute(
            "SELECT body, kept_at FROM answers"
            " WHERE caller = ? AND method = ? AND path = ? AND key = ?",
            (caller, method, path, key),
        ).fetchone()
        if row is None or row[1] < answers_expired_before(self._now().wall):
            return None
        return decode(row[0], KeptAnswer)

    def meta(self, key: str) -> str | None:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None


class SqliteTransaction(SqliteReader):
    """Implements `agent.store.port.Transaction`.

    Rows are replaced by upsert: INSERT OR REPLACE would delete first, and what refers with them.
    """

    def __init__(
        self, connection: sqlite3.Connection, now: Callable[[], Instant], events_kept: int
    ) -> None:
        super().__init__(connection, now)
        self._events_kept = events_kept

    def _do(self, sql: str, *values: str | int | float | bytes) -> None:
        self._connection.execute(sql, values)

    def put_deployment(self, row: Deployment) -> None:
        sql = """INSERT INTO deployments (name, body) VALUES (?, ?)
            ON CONFLICT (name) DO UPDATE SET body = excluded.body"""
        self._do(sql, row.name, encode(row))

    def delete_deployment(self, name: DeploymentName) -> None:
        if self.enclaves(name):
            raise StoreError(f"enclaves of {name} are still there")
        self._do("DELETE FROM deployments WHERE name = ?", name)
        for table in ("revisions", "updates", "secret_versions", "secret_digests"):
            self._do(f"DELETE FROM {table} WHERE deployment = ?", name)  # noqa: S608
        self.release_claims(name, ClaimKind.LISTEN)

    def put_revision(self, row: Revision) -> None:
        sql = """INSERT INTO revisions (deployment, number, body) VALUES (?, ?, ?)
            ON CONFLICT (deployment, number) DO UPDATE SET body = excluded.body"""
        self._do(sql, row.deployment, row.number, encode(row))
        for number in superfluous_revisions(self, row.deployment, row.number):
            sql = "DELETE FROM revisions WHERE deployment = ? AND number = ?"
            self._do(sql, row.deployment, number)
        self._forget_digests(row.deployment)

    def put_update(self, row: Update) -> None:
        sql = """INSERT INTO updates (id, deployment, running, body) VALUES (?, ?, ?, ?)
            ON CONFLICT (id) DO UPDATE SET deployment = excluded.deployment,
            running = excluded.running, body = excluded.body"""
        self._do(sql, row.id, row.deployment, row.running, encode(row))
        sql = """DELETE FROM updates WHERE deployment = ? AND NOT running AND position <= (
            SELECT position FROM updates WHERE deployment = ?
            ORDER BY position DESC LIMIT 1 OFFSET ?)"""
        self._do(sql, row.deployment, row.deployment, UPDATES_KEPT)

    def put_enclave(self, row: Enclave) -> None:
        sql = """INSERT INTO enclaves (id, deployment, body) VALUES (?, ?, ?)
            ON CONFLICT (id) DO UPDATE SET deployment = excluded.deployment,
            body = excluded.body"""
        self._do(sql, row.id, row.deployment, encode(row))

    def delete_enclave(self, enclave_id: EnclaveId) -> None:
        self._do("DELETE FROM enclaves WHERE id = ?", enclave_id)
        sql = "DELETE FROM claims WHERE holder = ? AND kind <> ?"
        self._do(sql, enclave_id, ClaimKind.LISTEN)

    def claim(self, claim: Claim) -> None:
        wanted = (claim.kind, claim.key)
        sql = "SELECT holder FROM claims WHERE kind = ? AND key = ?"
        row = self._connection.execute(sql, wanted).fetchone()
        if row is None:
            sql = "INSERT INTO claims (kind, key, holder) VALUES (?, ?, ?)"
            self._do(sql, *wanted, claim.holder)
        elif row[0] != claim.holder:
            raise ClaimTakenError(claim, row[0])

    def release_claims(self, holder: str, kind: str | None = None) -> None:
        sql = "DELETE FROM claims WHERE holder = ? AND kind = coalesce(?, kind)"
        self._connection.execute(sql, (holder, kind))

    def put_lease(self, row: Lease) -> None:
        sql = """INSERT INTO leases (id, body) VALUES (?, ?)
            ON CONFLICT (id) DO UPDATE SET body = excluded.body"""
        self._do(sql, row.id, encode(row))

    def delete_lease(self, lease_id: LeaseId) -> None:
        self._do("DELETE FROM leases WHERE id = ?", lease_id)

    def put_gpu_condition(self, row: GpuCondition) -> None:
        sql = """INSERT INTO gpu_conditions (bdf, body) VALUES (?, ?)
            ON CONFLICT (bdf) DO UPDATE SET body = excluded.body"""
        self._do(sql, row.bdf, encode(row))

    def delete_gpu_condition(self, bdf: Bdf) -> None:
        self._do("DELETE FROM gpu_conditions WHERE bdf = ?", bdf)

    def put_known_gpu(self, row: KnownGpu) -> None:
        sql = """INSERT INTO known_gpus (key, body) VALUES (?, ?)
            ON CONFLICT (key) DO UPDATE SET body = excluded.body"""
        self._do(sql, row.key, encode(row))

    def delete_known_gpu(self, key: str) -> None:
        self._do("DELETE FROM known_gpus WHERE key = ?", key)

    def put_identity(self, row: Identity) -> None:
        sql = """INSERT INTO identities (kind, key, body) VALUES (?, ?, ?)
            ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body"""
        self._do(sql, type(row).__name__, row.key, encode(row))

    def delete_identity(self, row: Identity) -> None:
        sql = "DELETE FROM identities WHERE kind = ? AND key = ?"
        self._do(sql, type(row).__name__, row.key)

    def put_secret_version(
        self, name: DeploymentName, secret: str, version: int, digest: str
    ) -> None:
        sql = """INSERT INTO secret_versions (deployment, name, version, digest)
            VALUES (?, ?, ?, ?) ON CONFLICT (deployment, name)
            DO UPDATE SET version = excluded.version, digest = excluded.digest"""
        self._do(sql, name, secret, version, digest)
        sql = """INSERT INTO secret_digests (deployment, name, version, digest)
            VALUES (?, ?, ?, ?) ON CONFLICT (deployment, name, version)
            DO UPDATE SET digest = excluded.digest"""
        self._do(sql, name, secret, version, digest)
        self._forget_digests(name)

    def delete_secret(self, name: DeploymentName, secret: str) -> None:
        self._do("DELETE FROM secret_versions WHERE deployment = ? AND name = ?", name, secret)
        self._forget_digests(name)

    def _forget_digests(self, name: DeploymentName) -> None:
        for secret, version in superfluous_digests(self, name):
            sql = "DELETE FROM secret_digests WHERE deployment = ? AND name = ? AND version = ?"
            self._do(sql, name, secret, version)

    def add_sample(self, sample: Sample) -> None:
        place = (sample.kind, sample.key)
        sql = "INSERT INTO samples (kind, key, value_s) VALUES (?, ?, ?)"
        self._do(sql, *place, sample.value_s)
        sql = """DELETE FROM samples WHERE kind = ? AND key = ? AND position <= (
            SELECT position FROM samples WHERE kind = ? AND key = ?
            ORDER BY position DESC LIMIT 1 OFFSET ?)"""
        self._do(sql, *place, *place, SAMPLES_KEPT)

    def append(self, draft: EventDraft, *, after: int = 0) -> Event:
        newest = self._one(Event, "SELECT body FROM events ORDER BY sequence DESC LIMIT 1")
        sequence, previous = (newest.sequence, newest.hash) if newest else self.checkpoint()
        event = chain(
            draft,
            sequence=max(sequence, after) + 1,
            at=event_time(self._now().wall),
            previous=previous,
        )
        sql = "INSERT INTO events (sequence, body) VALUES (?, ?)"
        self._do(sql, event.sequence, encode(event))
        self._prune(event.sequence - self._events_kept)
        return event

    def _prune(self, last: int) -> None:
        pruned = self._one(Event, "SELECT body FROM events WHERE sequence = ?", last)
        if pruned is None:
            return  # not so many yet, or in a gap: those before it go when it is over
        self._do("DELETE FROM events WHERE sequence <= ?", last)
        self._do("DELETE FROM pruned")
        self._do("INSERT INTO pruned (sequence, hash) VALUES (?, ?)", last, pruned.hash)

    def put_answer(
        self, caller: str, method: str, path: str, key: str, answer: KeptAnswer
    ) -> None:
        wall = self._now().wall
        self._do("DELETE FROM answers WHERE kept_at < ?", answers_expired_before(wall))
        sql = """INSERT INTO answers (caller, method, path, key, kept_at, body)
            VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (caller, method, path, key)
            DO UPDATE SET kept_at = excluded.kept_at, body = excluded.body"""
        self._do(sql, caller, method, path, key, wall.timestamp(), encode(answer))

    def set_meta(self, key: str, value: str) -> None:
        sql = """INSERT INTO meta (key, value) VALUES (?, ?)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value"""
        self._do(sql, key, value)
