"""The outbox: events of the durable chain that the coordinator has not acknowledged yet.

It is no copy: a position in the chain, durable too. Past its bound, and where the chain itself
was pruned, what is oldest is given up and one chained event `events_dropped` with the sequences
`from` and `to` says so; a later one covers what an earlier one did.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.model.event import Event, EventDraft
from agent.store.port import Reader, Store, Transaction

log = logging.getLogger(__name__)

MAX_WAITING = 5_000
PAGE = 200
_ACKNOWLEDGED = "link_acknowledged"  # keys of the store's meta table
_DROPPED = "link_dropped"


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order; `through`: the last one's sequence, or the chain's last if none waits."""

    events: Sequence[Event]
    through: int


class Outbox:
    """One reader and one writer: the session."""

    def __init__(self, store: Store, *, max_waiting: int = MAX_WAITING) -> None:
        self._store = store
        self._max_waiting = max_waiting
        self.waiting = 0

    async def page(self) -> Page:
        """The oldest that wait; gives up what is too much."""
        page, self.waiting = await self._store.read(self._look)
        if page is None:
            await self._store.transact(self._drop)
            page, self.waiting = await self._store.read(self._look)
        return page or Page((), 0)

    async def acknowledge(self, sequence: int) -> bool:
        """Everything up to it is durable with the coordinator. False if it cannot be.

        A coordinator that lost some (it was restored) says a lower one than before: then those
        are sent again, as far as they are still here.
        """
        before, after, newest = await self._store.read(lambda tx: _positions(tx, sequence))
        if sequence > newest:
            return False
        if before != after:
            await self._store.transact(lambda tx: tx.set_meta(_ACKNOWLEDGED, str(after)))
        self.waiting = await self._store.read(lambda tx: tx.event_count(after))
        return True

    async def newest(self) -> int:
        """The last sequence of the chain."""
        return (await self._store.read(lambda tx: tx.event_bounds()))[1]

    def _look(self, tx: Reader) -> tuple[Page | None, int]:
        """None for a page: too much waits, or some was pruned."""
        oldest, newest = tx.event_bounds()
        position = _position(tx)
        waiting = tx.event_count(position)
        if waiting > self._max_waiting or position < oldest - 1:
            return None, waiting
        events = tx.events(position, PAGE)
        return Page(events, events[-1].sequence if events else newest), waiting

    def _drop(self, tx: Transaction) -> None:
        """Half of what there may be is kept, so that this is not done for every event."""
        position, before = _position(tx), _dropped(tx)
        # who was not told of an earlier drop is told by this one
        first = before.first if before.event > position else position + 1
        last = tx.sequence_before_newest(min(self._max_waiting, tx.event_count(0)) // 2)
        event = tx.append(EventDraft(kind="events_dropped", from_=str(first), to=str(last)))
        tx.set_meta(_ACKNOWLEDGED, str(last))
        tx.set_meta(_DROPPED, f"{first} {last} {event.sequence}")
        log.warning("events given up", extra={"first": first, "last": last})


class _Dropped(NamedTuple):
    first: int = 0
    last: int = 0
    event: int = 0


def _dropped(tx: Reader) -> _Dropped:
    return _Dropped(*map(int, (tx.meta(_DROPPED) or "0 0 0").split()))


def _position(tx: Reader) -> int:
    return int(tx.meta(_ACKNOWLEDGED) or 0)


def _positions(tx: Reader, acknowledged: int) -> tuple[int, int, int]:
    """Before and after an acknowledgement, and the chain's last. What was given up stays so."""
    oldest, newest = tx.event_bounds()
    given_up = max(_dropped(tx).last, oldest - 1)
    return _position(tx), max(acknowledged, given_up), newest
