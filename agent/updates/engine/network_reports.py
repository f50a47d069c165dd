"""Has what the watchers of the host's network say shown as problems, and chained as events."""

from __future__ import annotations

from collections import deque

from agent.host.network_news import NetworkNews
from agent.model.event import EventDraft
from agent.store.port import Store, Transaction
from agent.updates.planner.alarm import Alarm
from agent.updates.snapshot.publisher import SnapshotPublisher

_MOST_WAITING = 100  # of events, while the store takes none


class NetworkReports:
    """Reads the news; one task's."""

    def __init__(self, news: NetworkNews, store: Store, publisher: SnapshotPublisher) -> None:
        self._news = news
        self._store = store
        self._publisher = publisher
        self._waiting: deque[EventDraft] = deque(maxlen=_MOST_WAITING)

    async def follow(self) -> None:
        """For ever. Raises StoreError; what was not chained then is by the next call."""
        while True:
            seen = self._news.changed.count
            problems = {
                key: Alarm(code=one.code, severity=one.severity, detail=one.detail, mend=one.mend)
                for key, one in self._news.problems.items()
            }
            self._publisher.show_network(problems, self._news.repairs)
            self._waiting.extend(self._news.take())
            if self._waiting:
                await self._store.transact(self._chain)
                self._waiting.clear()
            await self._news.changed.beyond(seen)

    def _chain(self, tx: Transaction) -> None:
        for draft in self._waiting:
            tx.append(draft)
