"""Puts a backup in the place of a damaged store. For a host whose agent is stopped.

What was between the backup and now is lost, and others may have been told of it: so events go on
far above every sequence that can have been given away, with a `store_restored` that shows the gap
in the chain, reports above every number that a coordinator can have seen, and routes above every
generation that a data plane can have in force. The damaged file and its log are kept under another
name. A crash leaves the damaged store or the restored one in place, and the damaged one kept.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.model.clock import Instant
from agent.model.event import STORE_RESTORED, Event, EventDraft
from agent.store.backup import BackupError, back_up, backups, sync
from agent.store.chain import ChainBreak, verify_chain
from agent.store.integrity import check_file, open_to_read
from agent.store.port import REPORT_NUMBERS, StoreDamagedError, StoreError
from agent.store.retention import EVENTS_KEPT
from agent.store.rows import decode
from agent.store.sqlite_rows import SqliteReader, SqliteTransaction

_BESIDE = ("-wal", "-shm")
GAP = 1_000_000  # more events, reports and switches than any host has between two backups
RESTORED = "restored"  # a key of the meta table: "yes" until unrecorded VMs are settled


class RestoreError(StoreError):
    """Nothing was changed."""

    @property
    def code(self) -> str:
        return "not_restored"


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was done. `lost`: the events after the backup that could still be read.

    `kept`: where the damaged file is; None if there was none. `broken`: where the chain of the
    backup's own events does not hold. `unbacked`: why the restored store has no backup yet.
    """

    backup: Path
    taken_at: dt.datetime
    newest: int
    event: Event
    kept: Path | None
    broken: ChainBreak | None
    lost: tuple[Event, ...]
    unbacked: str | None = None


def restore(store: Path, now: Callable[[], Instant]) -> Restored:
    """Restore the newest backup that is sound. The caller holds the lock of the agent.

    Raises RestoreError if the store is sound, or no backup is. Blocks.
    """
    _require_damage(store)
    backup, broken = _choose(store)
    newest = _newest(backup)
    lost = _readable_events(store, newest)
    known = [_newest(other) for other in backups(store)]
    known += [event.sequence for event in lost]
    stamp = dt.datetime.fromtimestamp(backup.stat().st_mtime, dt.UTC)
    scratch = store.with_name(f"{store.name}.restored-new")
    try:
        try:
            shutil.copyfile(backup, scratch)
            scratch.chmod(0o600)
            taken = f"{stamp:%Y-%m-%dT%H:%M:%SZ}"
            reason = f"from the backup of {taken}; what came after event {newest} is lost"
            event = _go_on(scratch, now, max(known) + GAP, reason)
            check_file(scratch)
            sync(scratch)
            kept = _keep(store, now().wall)
            sync(store.parent)
            scratch.replace(store)
            sync(store.parent)
        finally:
            scratch.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise RestoreError(f"{store} cannot be restored: {error}") from error
    unbacked = None
    try:
        back_up(store)  # or a second restore would give the same numbers away again
    except BackupError as error:
        unbacked = str(error)
    return Restored(
        backup=backup,
        taken_at=stamp,
        newest=newest,
        event=event,
        kept=kept,
        broken=broken,
        lost=lost,
        unbacked=unbacked,
    )


def stop_unrecorded(store: Path) -> None:
    """Have the next start of the agent stop the VMs that a restored store does not know."""
    check_file(store)
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("DELETE FROM meta WHERE key = ?", (RESTORED,))


def _require_damage(store: Path) -> None:
    if not store.exists() or store.stat().st_size == 0:
        return
    try:
        check_file(store)
    except StoreDamagedError:
        return
    raise RestoreError(f"the store {store} is sound: there is nothing to restore")


def _choose(store: Path) -> tuple[Path, ChainBreak | None]:
    """The newest sound one whose chain holds; else the newest sound one, and where it breaks."""
    sound: list[tuple[Path, ChainBreak | None]] = []
    unsound = []
    for path in backups(store):
        try:
            check_file(path)
            sound.append((path, _break_in(path)))
        except StoreError as error:
            unsound.append(str(error))
    if not sound:
        raise RestoreError("; ".join(["there is no sound backup", *unsound]))
    return next((one for one in sound if one[1] is None), sound[0])


def _break_in(path: Path) -> ChainBreak | None:
    with _reading(path) as connection:
        reader = SqliteReader(connection, _never)
        return verify_chain(reader.events(0, limit=-1), reader.checkpoint())


def _newest(path: Path) -> int:
    try:
        with _reading(path) as connection:
            return SqliteReader(connection, _never).event_bounds()[1]
    except (sqlite3.Error, StoreError):
        return 0


def _readable_events(store: Path, after: int) -> tuple[Event, ...]:
    """As many as a damaged store still gives."""
    found: list[Event] = []
    sql = "SELECT body FROM events WHERE sequence > ? ORDER BY sequence"
    with contextlib.suppress(sqlite3.Error, StoreError), _reading(store) as source:
        found.extend(decode(body, Event) for (body,) in source.execute(sql, (after,)))
    return tuple(found)


def _reading(store: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(open_to_read(store))


def _go_on(scratch: Path, now: Callable[[], Instant], after: int, reason: str) -> Event:
    """Make the copy go on above everything that may have been told."""
    with contextlib.closing(sqlite3.connect(scratch, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("BEGIN IMMEDIATE")
        tx = SqliteTransaction(connection, now, EVENTS_KEPT)
        for row in tx.deployments():
            route = msgspec.structs.replace(row.route, generation=row.route.generation + GAP)
            tx.put_deployment(msgspec.structs.replace(row, route=route))
        if numbers := tx.meta(REPORT_NUMBERS):
            tx.set_meta(REPORT_NUMBERS, str(int(numbers) + GAP))
        tx.set_meta(RESTORED, "yes")
        draft = EventDraft(kind=STORE_RESTORED, to="restored", reason=reason)
        event = tx.append(draft, after=after)
        connection.execute("COMMIT")
    return event


def _keep(store: Path, at: dt.datetime) -> Path | None:
    """Give the damaged store another name, and leave no log that another file would be given.

    A log knows not whose it is: one beside the restored file would be written into that.
    """
    kept = store.with_name(f"{store.name}.damaged-{at.astimezone(dt.UTC):%Y%m%dT%H%M%S.%fZ}")
    there = [side for side in ("", *_BESIDE) if store.with_name(store.name + side).exists()]
    for side in there:
        os.link(store.with_name(store.name + side), kept.with_name(kept.name + side))
    sync(store.parent)
    for side in _BESIDE:
        store.with_name(store.name + side).unlink(missing_ok=True)
    return kept if there else None


def _never() -> Instant:
    raise AssertionError("nothing that is read here expires")
