"""What only the durable store can promise: crashes, other processes, full disks, bad files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.errors import describe
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.store.chain import verify_chain
from agent.store.migrations import MIGRATIONS, migrate
from agent.store.port import (
    Reader,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreVersionError,
    Transaction,
)
from agent.store.rows import encode
from agent.store.sqlite import SqliteStore
from simulator.manual_clock import ManualClock
from simulator.rows import deployment, revision

NOW = ManualClock().now
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = await SqliteStore.open(tmp_path / "store.db", NOW)
    yield made
    await made.close()


@contextlib.contextmanager
def another_process(file: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "tests.fakes.store_process", str(file), *arguments]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def names(reader: Reader) -> list[str]:
    return [row.name for row in reader.deployments()]


async def test_the_file_is_private(store: SqliteStore, tmp_path: Path):
    await store.transact(lambda t: t.put_deployment(deployment()))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes["store.db"] == 0o600
    assert modes["store.db-wal"] == 0o600


async def test_rows_are_there_after_closing_and_opening(tmp_path: Path):
    store = await SqliteStore.open(tmp_path / "store.db", NOW)
    await store.transact(lambda t: t.put_deployment(deployment()))
    await store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]
    store = await SqliteStore.open(tmp_path / "store.db", NOW)
    assert await store.read(names) == ["web"]
    await store.close()


async def test_a_path_may_hold_any_character(tmp_path: Path):
    file = tmp_path / "a b?mode=ro#%41.db"
    store = await SqliteStore.open(file, NOW)
    await store.transact(lambda t: t.put_deployment(deployment()))
    await store.close()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


async def test_all_that_was_acknowledged_survives_a_kill_amid_writing(tmp_path: Path):
    file = tmp_path / "store.db"
    with another_process(file, "count") as other:
        for number in range(1, 31):
            assert line_of(other) == str(number)
        other.send_signal(signal.SIGKILL)
        other.wait()
    store = await SqliteStore.open(file, NOW)
    count = await store.read(lambda r: r.meta("count"))
    newest = await store.read(lambda r: r.event_bounds()[1])
    assert int(count or 0) == newest >= 30
    events, checkpoint = await store.read(lambda r: (r.events(0, 100_000), r.checkpoint()))
    assert verify_chain(events, checkpoint, newest) is None
    await store.close()


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path):
    file = tmp_path / "store.db"
    with another_process(file, "put", "durable") as other:
        assert line_of(other) == "done"
        other.send_signal(signal.SIGKILL)
        other.wait()
    store = await SqliteStore.open(file, NOW)
    assert await store.read(names) == ["durable"]
    await store.close()


async def test_what_was_not_committed_is_undone_by_a_kill(tmp_path: Path):
    file = tmp_path / "store.db"
    with another_process(file, "hold") as other:
        assert line_of(other) == "holding"
        other.send_signal(signal.SIGKILL)
        other.wait()
    store = await SqliteStore.open(file, NOW)
    assert await store.read(names) == []
    await store.transact(lambda t: t.put_deployment(deployment()))
    await store.close()


async def test_two_processes_cannot_both_take_the_last_slot(store: SqliteStore, tmp_path: Path):
    file = tmp_path / "store.db"
    for number in range(5):
        slot = f"slot-{number}"
        with (
            another_process(file, "claim", "one", slot) as one,
            another_process(file, "claim", "two", slot) as two,
        ):
            for process in (one, two):
                assert line_of(process) == "ready"
            for process in (one, two):
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            assert sorted([line_of(one), line_of(two)]) == sorted([slot, "none"])
    assert len(await store.read(lambda r: r.claims())) == 5


async def test_processes_that_open_a_new_file_at_once_both_succeed(tmp_path: Path):
    file = tmp_path / "store.db"
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(another_process(file, "put", f"web-{n}")) for n in range(4)]
        assert [line_of(other) for other in others] == ["done"] * 4
    store = await SqliteStore.open(file, NOW)
    assert await store.read(names) == ["web-0", "web-1", "web-2", "web-3"]
    await store.close()


async def test_a_writer_waits_for_another_process_only_so_long(tmp_path: Path):
    file = tmp_path / "store.db"
    store = await SqliteStore.open(file, NOW, busy_timeout_s=0.05)
    with another_process(file, "hold") as other:
        assert line_of(other) == "holding"
        with pytest.raises(StoreError, match=r"another process held the store .* for 0\.05 s"):
            await store.transact(lambda t: t.put_deployment(deployment()))
        assert await store.read(names) == []
        other.kill()
        other.wait()
    await store.transact(lambda t: t.put_deployment(deployment()))
    assert await store.read(names) == ["web"]
    await store.close()


async def test_a_reader_sees_the_old_state_while_a_writer_is_at_work(store: SqliteStore):
    writing, let_go = threading.Event(), threading.Event()

    def work(t: Transaction) -> None:
        t.put_deployment(deployment())
        writing.set()
        let_go.wait()

    writer = asyncio.create_task(store.transact(work))
    await asyncio.to_thread(writing.wait)
    assert await store.read(names) == []
    let_go.set()
    await writer
    assert await store.read(names) == ["web"]


async def test_a_reader_keeps_its_state_while_others_commit(store: SqliteStore):
    reading, committed = threading.Event(), threading.Event()

    def work(r: Reader) -> tuple[list[str], list[str]]:
        before = names(r)
        reading.set()
        committed.wait()
        return before, names(r)

    reader = asyncio.create_task(store.read(work))
    await asyncio.to_thread(reading.wait)
    await store.transact(lambda t: t.put_deployment(deployment()))
    committed.set()
    assert await reader == ([], [])


async def test_a_cancelled_transaction_is_over_when_the_cancellation_is_felt(store: SqliteStore):
    writing, let_go = threading.Event(), threading.Event()

    def work(t: Transaction) -> None:
        t.put_deployment(deployment())
        writing.set()
        let_go.wait()

    task = asyncio.create_task(store.transact(work))
    await asyncio.to_thread(writing.wait)
    task.cancel()
    queued = asyncio.create_task(store.transact(lambda t: t.put_deployment(deployment("late"))))
    await asyncio.sleep(0)
    task.cancel()
    queued.cancel()
    await asyncio.wait([queued])
    assert queued.cancelled()
    assert not task.done()
    let_go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await store.read(names) == ["web"]
    await store.transact(lambda t: t.put_deployment(deployment("next")))
    assert await store.read(names) == ["next", "web"]


async def test_a_cancelled_transaction_that_raises_leaves_nothing(store: SqliteStore):
    writing, let_go = threading.Event(), threading.Event()

    def work(t: Transaction) -> None:
        t.put_deployment(deployment())
        writing.set()
        let_go.wait()
        raise ValueError("no")

    task = asyncio.create_task(store.transact(work))
    await asyncio.to_thread(writing.wait)
    task.cancel()
    let_go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await store.read(names) == []


async def test_closing_waits_for_what_was_begun(tmp_path: Path):
    store = await SqliteStore.open(tmp_path / "store.db", NOW)
    writing, let_go = threading.Event(), threading.Event()

    def work(t: Transaction) -> None:
        t.put_deployment(deployment())
        writing.set()
        let_go.wait()

    task = asyncio.create_task(store.transact(work))
    await asyncio.to_thread(writing.wait)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    let_go.set()
    await asyncio.gather(task, closing)
    store = await SqliteStore.open(tmp_path / "store.db", NOW)
    assert await store.read(names) == ["web"]
    await store.close()


# Files that are not what they should be.


async def test_a_directory_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(StoreError, match="No such file or directory"):
        await SqliteStore.open(tmp_path / "absent" / "store.db", NOW)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path):
    file = tmp_path / "store.db"
    file.write_bytes(b"# not a database at all\n" * 100)
    with pytest.raises(StoreDamagedError, match="is not a store"):
        await SqliteStore.open(file, NOW)
    assert file.read_bytes() == b"# not a database at all\n" * 100


async def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path):
    file = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")
        connection.commit()
    before = file.read_bytes()
    with pytest.raises(StoreVersionError, match="something else"):
        await SqliteStore.open(file, NOW)
    assert file.read_bytes() == before


async def test_a_file_of_a_newer_agent_is_refused_and_left_alone(tmp_path: Path):
    file = tmp_path / "store.db"
    store = await SqliteStore.open(file, NOW)
    await store.close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = file.read_bytes()
    with pytest.raises(StoreVersionError, match="a newer agent wrote it"):
        await SqliteStore.open(file, NOW)
    assert file.read_bytes() == before


async def test_an_empty_file_becomes_a_store(tmp_path: Path):
    (tmp_path / "store.db").touch()
    store = await SqliteStore.open(tmp_path / "store.db", NOW)
    assert await store.read(names) == []
    await store.close()


async def test_a_truncated_or_scribbled_file_is_an_error_and_never_wrong_rows(tmp_path: Path):
    file = tmp_path / "store.db"
    store = await SqliteStore.open(file, NOW)
    for n in range(50):
        await store.transact(lambda t, n=n: t.put_deployment(deployment(f"web-{n}")))
    await store.close()
    whole = file.read_bytes()
    damaged = [
        whole[: len(whole) // 2],
        whole[:4096] + os.urandom(4096) * (len(whole) // 4096 - 1),
        whole.replace(b'"wish":"run"', b'"wish":"flY"'),
        whole.replace(b'"wish":"run"', b'"wish"=="ru'),
    ]
    for bytes_ in damaged:
        file.write_bytes(bytes_)
        with pytest.raises(StoreError, match=r"damaged|is not a store|failed"):
            await open_and_read(file)


async def open_and_read(file: Path) -> list[str]:
    store = await SqliteStore.open(file, NOW)
    try:
        return await store.read(names)
    finally:
        await store.close()


# Migrations.


def test_released_migrations_never_change():
    digests = [hash_of(step) for step in MIGRATIONS]
    assert digests == [
        "bb0fa5e11945a806",
        "514f63af77244af0",
        "46c2a1b5ebadfc1d",
        "93692d975e69f5e6",
        "52b0c69ddd7a6ad1",
    ]


def hash_of(step: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(" ".join(s.split()) for s in step).encode()).hexdigest()[:16]


async def test_an_older_file_is_brought_forward_with_its_rows(tmp_path: Path):
    file = tmp_path / "store.db"
    store = await SqliteStore.open(file, NOW)
    await store.transact(lambda t: t.put_deployment(deployment()))
    await store.close()
    newer = (
        *MIGRATIONS,
        ("CREATE TABLE more (x)", "INSERT INTO more SELECT name FROM deployments"),
    )
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        migrate(connection, newer)
        assert connection.execute("SELECT x FROM more").fetchall() == [("web",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
        migrate(connection, newer)


async def test_digests_of_current_secrets_are_carried_over(tmp_path: Path):
    file = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS[:3])
        connection.execute("INSERT INTO deployments VALUES ('web', ?)", (encode(deployment()),))
        connection.execute("INSERT INTO secret_versions VALUES ('web', 'KEY', 2, 'aa')")
    store = await SqliteStore.open(file, NOW)
    kept = await store.read(lambda r: r.secret_digests(DeploymentName("web")))
    await store.close()
    assert kept == {("KEY", 2): "aa"}


async def test_a_failing_migration_leaves_the_file_as_it_was(tmp_path: Path):
    file = tmp_path / "store.db"
    store = await SqliteStore.open(file, NOW)
    await store.transact(lambda t: t.put_deployment(deployment()))
    await store.close()
    broken = (*MIGRATIONS, ("CREATE TABLE more (x)",), ("CREATE TABLE more (y)",))
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            migrate(connection, broken)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert await open_and_read(file) == ["web"]


# Full disks.


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    disk = short_dir / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "ea-store-test", str(disk)]
    subprocess.run(mount, check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    return ballast


@pytest.mark.root
async def test_a_full_disk_is_said_and_the_store_goes_on_when_there_is_room(small_disk: Path):
    store = await SqliteStore.open(small_disk / "store.db", NOW)
    await store.transact(lambda t: t.put_deployment(deployment()))
    ballast = fill(small_disk)
    big = {"BIG": "x" * 300_000}
    for _ in range(3):
        with pytest.raises(StoreFullError) as caught:
            await store.transact(lambda t: t.put_revision(revision(variables=big)))
        assert caught.value.code == "disk_full"
        assert await store.read(names) == ["web"]
        assert await store.read(lambda r: r.revisions(DeploymentName("web"))) == []
    ballast.unlink()
    await store.transact(lambda t: t.put_revision(revision(variables={"SMALL": "1"})))
    await store.close()
    assert await open_and_read(small_disk / "store.db") == ["web"]


@pytest.mark.root
async def test_a_disk_that_fills_at_any_write_leaves_whole_transactions_only(small_disk: Path):
    """Each transaction puts a row and its event; they must be there both or not at all."""
    store = await SqliteStore.open(small_disk / "store.db", NOW)
    await store.transact(lambda t: t.put_deployment(deployment()))
    done = 0
    while True:

        def work(t: Transaction, n: int = done + 1) -> None:
            t.put_revision(revision(n, variables={"PAD": "x" * 60_000}))
            t.append(EventDraft(kind="note", reason=str(n)))

        try:
            await store.transact(work)
        except StoreFullError:
            break
        done += 1
    assert done > 3
    assert await store.read(lambda r: len(r.revisions(DeploymentName("web")))) == done
    assert await store.read(lambda r: r.event_bounds()) == (1, done)
    await store.close()
    with contextlib.closing(sqlite3.connect(small_disk / "store.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM revisions").fetchone() == (done,)
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (done,)


@pytest.mark.root
async def test_a_new_store_on_a_full_disk_is_said_and_made_when_there_is_room(small_disk: Path):
    ballast = fill(small_disk)
    with pytest.raises(StoreFullError):
        await SqliteStore.open(small_disk / "store.db", NOW)
    ballast.unlink()
    assert await open_and_read(small_disk / "store.db") == []


async def test_a_file_that_may_not_grow_is_a_clear_error_and_the_store_goes_on(tmp_path: Path):
    store = await SqliteStore.open(tmp_path / "store.db", NOW)
    await store.transact(lambda t: t.put_deployment(deployment()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, hard))
    try:
        big = {"BIG": "x" * 300_000}
        with pytest.raises(StoreError) as caught:
            await store.transact(lambda t: t.put_revision(revision(variables=big)))
        assert "disk I/O error" in describe(caught.value)
        assert await store.read(names) == ["web"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await store.transact(lambda t: t.put_revision(revision()))
    await store.close()
    assert await open_and_read(tmp_path / "store.db") == ["web"]


async def test_a_directory_that_may_not_be_written_is_a_clear_error(tmp_path: Path):
    file = tmp_path / "store.db"
    store = await SqliteStore.open(file, NOW)
    await store.close()
    shutil.rmtree(tmp_path)
    with pytest.raises(StoreError, match="cannot make the store"):
        await SqliteStore.open(file, NOW)
