"""Who keeps the backups: after changes, seldom, and telling what hinders him."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from agent.daemon.store_keeper import StoreKeeper
from agent.store.backup import backups, generations
from agent.store.port import MEND_DAMAGE
from agent.store.sqlite import SqliteStore
from agent.updates.snapshot.publisher import SnapshotPublisher
from simulator.instant_host import InstantHost
from simulator.manual_clock import ManualClock
from tests.fakes.store_damage import carry_log_over, digest, zero_header


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = await SqliteStore.open(tmp_path / "agent.db", ManualClock().now)
    yield made
    await made.close()


@pytest.fixture
def publisher(store: SqliteStore, tmp_path: Path) -> SnapshotPublisher:
    publisher = InstantHost(store, ManualClock(), tmp_path).runtime.publisher
    publisher.show_ready(())
    return publisher


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


def change(store: SqliteStore) -> asyncio.Task[None]:
    return asyncio.create_task(store.transact(lambda tx: tx.set_meta("a", str(store.commits))))


async def test_a_backup_is_made_at_once_after_changes_and_at_the_end(
    store: SqliteStore, publisher: SnapshotPublisher
) -> None:
    keeper = StoreKeeper(store, publisher, interval_s=0.05)
    running = asyncio.create_task(keeper.run())
    await until(lambda: len(backups(store.path)) == 1)
    first = digest(backups(store.path)[0])
    await asyncio.sleep(0.3)
    assert len(backups(store.path)) == 1  # nothing was written since
    await change(store)
    await until(lambda: digest(backups(store.path)[0]) != first)  # there is always a newest
    _, older = backups(store.path)
    assert digest(older) == first
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await change(store)
    await keeper.close()
    assert digest(backups(store.path)[0]) != digest(backups(store.path)[1])
    last = digest(backups(store.path)[0])
    await keeper.close()
    assert digest(backups(store.path)[0]) == last


async def test_a_backup_that_cannot_be_made_is_a_problem_until_it_can(
    store: SqliteStore, publisher: SnapshotPublisher
) -> None:
    newest, hindrance = generations(store.path)
    hindrance.mkdir()  # which no file can replace
    running = asyncio.create_task(StoreKeeper(store, publisher, interval_s=0.02).run())
    await until(newest.exists)
    await change(store)
    await until(lambda: bool(publisher.snapshot.problems))
    (problem,) = publisher.snapshot.problems
    assert (problem.code, problem.severity) == ("backup_failed", "warning")
    assert publisher.snapshot.ready
    await change(store)  # which is not hindered
    hindrance.rename(hindrance.with_name("away"))
    await until(lambda: not publisher.snapshot.problems)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_damage_ends_it_and_the_agent_is_ready_no_more(
    store: SqliteStore, publisher: SnapshotPublisher
) -> None:
    running = asyncio.create_task(StoreKeeper(store, publisher, interval_s=0.02).run())
    await until(lambda: len(backups(store.path)) == 1)
    before = digest(backups(store.path)[0])
    carry_log_over(store.path)
    zero_header(store.path)
    await asyncio.wait_for(running, 20)
    assert publisher.snapshot.store_damage is not None
    assert not publisher.snapshot.ready
    publisher.show_ready(())  # nobody makes it ready again
    assert not publisher.snapshot.ready
    met = {"code": "store_damaged", "severity": "warning", "detail": "no forecast"}
    assert not publisher.raise_problem("forecast", mend="it is tried again", **met)
    (problem,) = publisher.snapshot.problems
    assert (problem.code, problem.mend) == ("store_damaged", MEND_DAMAGE)
    assert [digest(path) for path in backups(store.path)] == [before]
