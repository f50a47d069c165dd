"""What the watchers of the network say reaches status, events and metrics; and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.host.network_news import NetworkNews, NetworkProblem
from agent.model.event import EventDraft
from agent.store.port import StoreFullError
from agent.updates.engine.network_reports import NetworkReports
from simulator.instant_host import InstantHost
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore

PROBLEM = NetworkProblem(code="tap_lost", severity="error", detail="gone", mend="relaunch web")
REPAIR = EventDraft(kind="network", from_="changed", to="repaired", reason="it was set down")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0)


async def test_problems_are_shown_and_cleared_and_each_is_chained(tmp_path: Path) -> None:
    clock = ManualClock()
    store = MemoryStore(clock.now)
    publisher = InstantHost(store, clock, tmp_path).runtime.publisher
    news = NetworkNews()
    publisher.raise_problem("network/x", code="other", severity="info", detail="d", mend="m")
    task = asyncio.create_task(NetworkReports(news, store, publisher).follow())
    news.show("links", {"tap:x": PROBLEM})
    await until(lambda: len(publisher.snapshot.problems) == 2)
    shown = publisher.snapshot.problems[1]
    assert (shown.code, shown.detail, shown.mend) == ("tap_lost", "gone", "relaunch web")
    news.repaired("link", REPAIR)
    await until(lambda: publisher.snapshot.network_repairs == {"link": 1})
    news.show("links", {})
    await until(lambda: len(publisher.snapshot.problems) == 1)
    await asyncio.sleep(0)
    events = await store.read(lambda tx: tx.events(0))
    assert [one.to for one in events if one.kind == "network"] == [
        "tap_lost",
        "repaired",
        "mended",
    ]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_events_that_the_store_did_not_take_are_chained_by_the_next_try(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    store = MemoryStore(clock.now)
    publisher = InstantHost(store, clock, tmp_path).runtime.publisher
    news = NetworkNews()
    reports = NetworkReports(news, store, publisher)
    transact, full = store.transact, True

    async def failing(callback):  # type: ignore[no-untyped-def]
        if full:
            raise StoreFullError("no room")
        return await transact(callback)

    store.transact = failing  # type: ignore[method-assign]
    news.repaired("link", REPAIR)
    for _ in range(2):
        try:
            await asyncio.wait_for(reports.follow(), 1)
        except StoreFullError:
            full = False
        except TimeoutError:
            break
    events = await store.read(lambda tx: tx.events(0))
    assert [one.reason for one in events] == ["it was set down"]
