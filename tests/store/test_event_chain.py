"""The chain of events: whatever is done to it shows."""

from __future__ import annotations

import msgspec
import pytest

from agent.model.event import GENESIS, Event, EventDraft, chain, hash_of
from agent.store.chain import verify_chain
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore

START = (0, GENESIS)


@pytest.fixture
async def events() -> list[Event]:
    store = MemoryStore(ManualClock().now)
    for n in range(5):
        await store.transact(lambda t, n=n: t.append(EventDraft(kind="note", reason=f"é {n}")))
    return await store.read(lambda r: r.events(0))


def broken_at(events: list[Event], newest: int | None = None) -> int | None:
    found = verify_chain(events, START, newest)
    return found.sequence if found else None


async def test_a_whole_chain_holds(events: list[Event]):
    assert verify_chain(events, START, newest=5) is None
    assert verify_chain(events[2:], (2, events[1].hash), newest=5) is None
    assert verify_chain([], START, newest=0) is None


@pytest.mark.parametrize(
    "field", [name for name in Event.__struct_fields__ if name not in ("sequence", "hash")]
)
async def test_an_edit_of_any_member_shows(events: list[Event], field: str):
    events[2] = msgspec.structs.replace(events[2], **{field: "edited"})
    assert broken_at(events) == 3


async def test_an_edit_with_a_fitting_hash_shows_at_the_next(events: list[Event]):
    edited = msgspec.structs.replace(events[2], reason="edited")
    fitting = hash_of(msgspec.to_builtins(edited))
    events[2] = msgspec.structs.replace(edited, hash=fitting)
    assert broken_at(events) == 4


async def test_a_removed_event_shows(events: list[Event]):
    del events[2]
    assert broken_at(events) == 3


async def test_events_in_another_order_show(events: list[Event]):
    events[1], events[2] = events[2], events[1]
    assert broken_at(events) == 2


async def test_an_inserted_event_shows(events: list[Event]):
    draft = EventDraft(kind="forged")
    forged = chain(draft, sequence=3, at=events[2].at, previous=events[1].hash)
    events.insert(2, forged)
    assert broken_at(events) == 4


async def test_a_cut_off_end_shows_against_the_newest_sequence(events: list[Event]):
    assert broken_at(events[:3]) is None
    assert broken_at(events[:3], newest=5) == 4


async def test_a_cut_off_beginning_shows_against_the_checkpoint(events: list[Event]):
    assert broken_at(events[1:]) == 1


async def test_another_checkpoint_shows(events: list[Event]):
    assert verify_chain(events, (0, "1" * 64)) is not None
