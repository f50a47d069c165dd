"""Backups are sound or not there; a restore loses what came after them, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.link.numbers import Numbers
from agent.model.clock import Instant
from agent.model.event import STORE_RESTORED, Event, EventDraft
from agent.model.revision import Route
from agent.store.backup import BackupError, back_up, backups, generations
from agent.store.chain import verify_chain
from agent.store.integrity import check_file
from agent.store.port import Reader, StoreDamagedError
from agent.store.restore import GAP, Restored, RestoreError, restore
from agent.store.sqlite import SqliteStore
from simulator.manual_clock import ManualClock
from simulator.rows import deployment
from tests.fakes.store_damage import DAMAGES, carry_log_over, digest, zero_header

CLOCK = ManualClock()


def NOW() -> Instant:
    CLOCK.advance(1)
    return CLOCK.now()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


async def write(file: Path, *names: str) -> None:
    """A deployment and an event each, by an agent that comes and goes."""
    store = await SqliteStore.open(file, NOW)
    for name in names:
        await put(store, name)
    await store.close()


async def put(store: SqliteStore, name: str) -> Event:
    row = msgspec.structs.replace(deployment(name), route=Route(generation=7, enclave=None))
    await Numbers(store).take()
    await store.transact(lambda tx: tx.put_deployment(row))
    return await store.transact(lambda tx: tx.append(EventDraft(kind="note", deployment=name)))


def names(tx: Reader) -> list[str]:
    return [row.name for row in tx.deployments()]


async def rows(file: Path) -> tuple[list[str], list[Event], tuple[int, str]]:
    store = await SqliteStore.open(file, NOW)
    try:
        return await store.read(lambda tx: (names(tx), tx.events(0), tx.checkpoint()))
    finally:
        await store.close()


async def test_two_generations_are_kept_each_a_private_file_of_its_own(file: Path) -> None:
    for name in ("one", "two", "three"):
        await write(file, name)
        back_up(file)
    newest, older = backups(file)
    assert [path.stat().st_mode & 0o777 for path in (newest, older)] == [0o600, 0o600]
    made = {path.name for path in file.parent.glob("*backup*")}
    assert made == {"agent.db.backup-1", "agent.db.backup-2"}
    assert (await rows(newest))[0] == ["one", "three", "two"]
    assert (await rows(older))[0] == ["one", "two"]


async def test_a_backup_is_of_one_moment_and_keeps_no_writer_waiting(file: Path) -> None:
    store = await SqliteStore.open(file, NOW)
    for number in range(20):
        await put(store, f"before-{number}")
    copying = asyncio.create_task(asyncio.to_thread(back_up, file))
    written = 0
    while not copying.done():
        await put(store, f"during-{written}")
        written += 1
    await copying
    kept, events, checkpoint = await rows(backups(file)[0])
    assert len(kept) in (len(events), len(events) + 1)
    assert verify_chain(events, checkpoint) is None
    print(f"{written} transactions while a backup of {len(kept)} deployments was made")
    await store.close()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_store_takes_the_place_of_no_backup(
    file: Path, damage: Callable[[Path], None]
) -> None:
    await write(file, "one")
    back_up(file)
    await write(file, "two")
    before = digest(backups(file)[0])
    damage(file)
    damaged = digest(file)
    with pytest.raises(StoreDamagedError, match=r"agent\.db"):
        back_up(file)
    assert [digest(path) for path in backups(file)] == [before]
    assert digest(file) == damaged
    assert not list(file.parent.glob("*-new"))


async def test_a_copy_that_was_killed_is_in_nobodys_way(file: Path) -> None:
    await write(file, "one")
    file.with_name("agent.db.backup-new").write_bytes(b"half a copy")
    back_up(file)
    assert (await rows(backups(file)[0]))[0] == ["one"]
    assert not list(file.parent.glob("*-new"))


async def test_from_the_first_backup_on_there_is_a_newest_at_every_moment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for who looks while another one is made, and after a kill in the midst of it."""
    await write(file, "one")
    back_up(file)
    newest, older = generations(file)
    replace, there, kill_at = Path.replace, [], 0

    def watched(path: Path, target: Path) -> Path:
        there.append(newest.exists())
        if len(there) == kill_at:
            raise KeyboardInterrupt
        done = replace(path, target)
        there.append(newest.exists())
        return done

    monkeypatch.setattr(Path, "replace", watched)
    await write(file, "two")
    kill_at = 3  # the older one has taken its place, the new one has not
    with pytest.raises(KeyboardInterrupt):
        back_up(file)
    assert digest(newest) == digest(older)
    kill_at = 0
    back_up(file)
    assert {path.name for path in file.parent.glob("*.backup-*")} == {newest.name, older.name}
    assert (await rows(newest))[0] == ["one", "two"]
    assert (await rows(older))[0] == ["one"]
    assert all(there)


async def test_a_backup_that_cannot_be_made_leaves_the_older_ones(file: Path) -> None:
    await write(file, "one")
    back_up(file)
    newest, older = generations(file)
    older.mkdir()  # what cannot be replaced by a file
    with pytest.raises(BackupError, match=r"no backup of .* could be made"):
        back_up(file)
    check_file(newest)
    assert not list(file.parent.glob("*-new"))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damage_that_is_met_while_open_is_never_written_over(
    file: Path, damage: Callable[[Path], None]
) -> None:
    store = await SqliteStore.open(file, NOW)
    await put(store, "one")
    carry_log_over(file)
    damage(file)
    with contextlib.suppress(StoreDamagedError):
        await put(store, "two")  # may do, with pages that SQLite has in its cache
    with pytest.raises(StoreDamagedError) as met:
        back_up(file)
    store.found_damaged(met.value)
    log = file.with_name("agent.db-wal")
    before = digest(file), content(log)
    for _ in range(2):
        with pytest.raises(StoreDamagedError):
            await put(store, "three")
        with pytest.raises(StoreDamagedError):
            await store.read(names)
    await store.close()
    assert (digest(file), content(log)) == before


def content(log: Path) -> bytes:
    return log.read_bytes() if log.exists() else b""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_store_is_not_opened_and_stays_as_it_is(
    file: Path, damage: Callable[[Path], None]
) -> None:
    await write(file, "one")
    damage(file)
    before = digest(file)
    for _ in range(2):
        with pytest.raises(StoreDamagedError):
            await SqliteStore.open(file, NOW)
        assert digest(file) == before


@pytest.mark.parametrize("lose", [Path.unlink, lambda file: os.truncate(file, 0)])
async def test_a_store_that_is_gone_is_no_first_start(
    file: Path, lose: Callable[[Path], None]
) -> None:
    await write(file, "one")
    back_up(file)
    lose(file)
    with pytest.raises(StoreDamagedError, match="is gone, and a backup of it is there"):
        await SqliteStore.open(file, NOW)
    assert not file.exists() or file.stat().st_size == 0
    restore(file, NOW)
    assert (await rows(file))[0] == ["one"]


async def restored(file: Path) -> Restored:
    await write(file, "one", "two")
    back_up(file)
    await write(file, "three")
    zero_header(file)
    return restore(file, NOW)


async def test_a_restored_store_goes_on_above_every_number_that_was_given_away(
    file: Path,
) -> None:
    done = await restored(file)
    kept, events, checkpoint = await rows(file)
    assert kept == ["one", "two"]
    assert [event.sequence for event in events] == [1, 2, done.event.sequence]
    assert done.event.sequence > 3 + 1000
    assert (done.event.kind, done.newest) == (STORE_RESTORED, 2)
    assert verify_chain(events, checkpoint) is None
    store = await SqliteStore.open(file, NOW)
    generations = await store.read(lambda tx: [row.route.generation for row in tx.deployments()])
    assert generations == [7 + GAP] * 2
    assert await Numbers(store).take() > GAP
    await store.close()


async def test_a_second_restore_gives_no_number_twice(file: Path) -> None:
    first = await restored(file)
    store = await SqliteStore.open(file, NOW)
    given = await put(store, "three again")
    await store.close()
    zero_header(file)
    second = restore(file, NOW)
    assert first.event.sequence < given.sequence < second.event.sequence
    _, events, checkpoint = await rows(file)
    assert verify_chain(events, checkpoint) is None


async def test_a_gap_before_any_other_event_is_a_missing_event(file: Path) -> None:
    await restored(file)
    _, events, checkpoint = await rows(file)
    assert verify_chain(events, checkpoint) is None
    forged = msgspec.structs.replace(events[2], kind="note")
    assert verify_chain([*events[:2], forged], checkpoint) is not None
    assert verify_chain([events[0], events[2]], checkpoint) is not None


async def test_what_was_lost_is_read_from_the_damaged_store_as_far_as_it_goes(file: Path) -> None:
    await write(file, "one")
    back_up(file)
    await write(file, "two", "three")
    (page,) = [n for n in range(1, 60) if b'"name":"three"' in page_of(file, n)][:1]
    with file.open("r+b") as opened:
        os.pwrite(opened.fileno(), b"\xff" * 4096, page * 4096)
    done = restore(file, NOW)
    assert [event.deployment for event in done.lost] == ["two", "three"]
    assert done.kept is not None


def page_of(file: Path, number: int) -> bytes:
    with file.open("rb") as opened:
        return os.pread(opened.fileno(), 4096, number * 4096)


async def test_the_older_backup_is_taken_when_the_newest_is_damaged_too(file: Path) -> None:
    for name in ("one", "two"):
        await write(file, name)
        back_up(file)
    zero_header(file)
    zero_header(backups(file)[0])
    assert restore(file, NOW).backup == generations(file)[1]
    assert (await rows(file))[0] == ["one"]


async def test_nothing_is_changed_where_nothing_can_or_need_be_restored(file: Path) -> None:
    await write(file, "one")
    with pytest.raises(RestoreError, match="is sound: there is nothing to restore"):
        restore(file, NOW)
    zero_header(file)
    before = digest(file)
    with pytest.raises(RestoreError, match="there is no sound backup"):
        restore(file, NOW)
    assert digest(file) == before
    assert not list(file.parent.glob("agent.db.*"))


async def test_a_restore_that_is_interrupted_is_done_again(file: Path) -> None:
    await write(file, "one")
    back_up(file)
    zero_header(file)
    before = digest(file)
    file.with_name("agent.db.restored-new").write_bytes(b"half a copy")
    file.with_name("agent.db-wal").write_bytes(b"")
    restore(file, NOW)
    (kept,) = file.parent.glob("agent.db.damaged-*Z")
    assert digest(kept) == before
    assert not file.with_name("agent.db-wal").exists()
    assert (await rows(file))[0] == ["one"]


async def test_the_log_of_a_store_that_is_gone_is_not_given_to_the_restored_one(
    file: Path,
) -> None:
    await write(file, "one")
    back_up(file)
    store = await SqliteStore.open(file, NOW)
    await put(store, "two")
    log = file.with_name("agent.db-wal")
    whole = log.read_bytes()
    await store.close()
    file.unlink()
    log.write_bytes(whole)  # as a kill would have left it
    restore(file, NOW)
    assert not log.exists()
    assert (await rows(file))[0] == ["one"]
    (kept,) = file.parent.glob("agent.db.damaged-*-wal")
    assert kept.read_bytes() == whole
