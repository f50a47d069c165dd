"""The outbox over the real store's port: in order, bounded, and honest about what it gave up."""

from __future__ import annotations

import pytest

from agent.link.numbers import Numbers
from agent.link.outbox import PAGE, Outbox
from agent.model.event import STORE_RESTORED, EventDraft
from agent.store.chain import verify_chain
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore


def new_store(**more: int) -> MemoryStore:
    return MemoryStore(ManualClock().now, **more)


async def happen(store: MemoryStore, count: int) -> None:
    for n in range(count):
        await store.transact(lambda tx: tx.append(EventDraft(kind="x", reason=str(n))))  # noqa: B023


async def sequences(outbox: Outbox) -> list[int]:
    return [event.sequence for event in (await outbox.page()).events]


async def test_what_is_not_acknowledged_is_told_again_and_in_order() -> None:
    store = new_store()
    outbox = Outbox(store)
    await happen(store, 5)
    assert await sequences(outbox) == [1, 2, 3, 4, 5]
    assert await outbox.acknowledge(3)
    assert (await sequences(outbox), outbox.waiting) == ([4, 5], 2)
    assert await sequences(Outbox(store)) == [4, 5]  # another life of the agent
    assert await outbox.acknowledge(5)
    assert ((await outbox.page()).through, outbox.waiting) == (5, 0)


async def test_a_coordinator_that_lost_some_gets_them_again() -> None:
    store = new_store()
    outbox = Outbox(store)
    await happen(store, 5)
    await outbox.acknowledge(5)
    await outbox.acknowledge(2)
    assert await sequences(outbox) == [3, 4, 5]


async def test_more_than_ever_was_cannot_be_acknowledged() -> None:
    store = new_store()
    outbox = Outbox(store)
    await happen(store, 2)
    assert not await outbox.acknowledge(3)
    assert await sequences(outbox) == [1, 2]


async def test_a_long_absence_is_told_page_by_page() -> None:
    store = new_store()
    outbox = Outbox(store)
    await happen(store, PAGE + 3)
    page = await outbox.page()
    assert (len(page.events), page.through) == (PAGE, PAGE)
    await outbox.acknowledge(page.through)
    assert await sequences(outbox) == [PAGE + 1, PAGE + 2, PAGE + 3]


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_past_its_bound_one_event_says_what_was_given_up(times: int) -> None:
    store = new_store()
    outbox = Outbox(store, max_waiting=10)
    for _ in range(times):
        await happen(store, 11)
        await outbox.page()
    events = list((await outbox.page()).events)
    assert outbox.waiting <= 10
    dropped = [event for event in events if event.kind == "events_dropped"]
    assert len(dropped) == 1
    assert (dropped[0].from_, dropped[0].to) == ("1", str(events[0].sequence - 1))
    everything = await store.read(lambda tx: tx.events(0))
    assert verify_chain(everything, (0, "0" * 64)) is None
    await outbox.acknowledge(0)  # who acknowledges nothing does not get back what was given up
    assert await sequences(outbox) == [event.sequence for event in events]


async def test_what_was_pruned_is_told_as_given_up() -> None:
    store = new_store(events_kept=5)
    outbox = Outbox(store, max_waiting=100)
    await happen(store, 20)
    events = list((await outbox.page()).events)
    dropped = next(event for event in events if event.kind == "events_dropped")
    assert (dropped.from_, events[0].sequence) == ("1", int(dropped.to or 0) + 1)


async def test_numbers_grow_over_restarts() -> None:
    store = new_store()
    first, second = Numbers(store), Numbers(store)
    taken = [await first.take(), await first.take(), await second.take(), await first.take()]
    assert taken[0] < taken[1] < taken[3] < taken[2]


async def test_a_gap_that_a_restored_backup_left_is_nothing_that_waits() -> None:
    store = new_store()
    outbox = Outbox(store, max_waiting=10)
    await happen(store, 4)
    await outbox.acknowledge(2)
    await store.transact(lambda tx: tx.append(EventDraft(kind=STORE_RESTORED), after=1_000_000))
    assert (await sequences(outbox), outbox.waiting) == ([3, 4, 1_000_001], 3)
    await happen(store, 10)
    events = (await outbox.page()).events
    assert events[0].sequence > 1_000_001
    assert [(e.from_, e.to) for e in events if e.kind == "events_dropped"] == [
        ("3", str(events[0].sequence - 1))
    ]
    await outbox.acknowledge(events[-1].sequence)
    assert outbox.waiting == 0
