"""What is counted since the agent started; the metrics page shows it."""

from __future__ import annotations

from collections import Counter

from agent.updates.snapshot.snapshot import Snapshot


class Counters:
    """Counts. Nothing here is durable: a counter that begins again is what scrapers expect."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.updates: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()  # connections over TLS, by the reason
        self._last: dict[str, tuple[str, bool]] = {}

    def count_request(self, method: str, path: str, status: int) -> None:
        """`path` is the route's template, so that the number of series is bounded."""
        self.requests[method, path, status] += 1

    def observe(self, snapshot: Snapshot) -> None:
        """Count the updates that have ended since the last look.

        What had ended before the first look at a deployment is not counted.
        """
        for name, facts in snapshot.deployments.items():
            update = facts.update
            if update is None:
                self._last[name] = ("", False)
                continue
            seen = self._last.get(name)
            if not update.running and seen is not None and seen != (update.id, False):
                self.updates[name, update.status] += 1
            self._last[name] = (update.id, update.running)
        for gone in self._last.keys() - snapshot.deployments.keys():
            del self._last[gone]
            for key in [key for key in self.updates if key[0] == gone]:
                del self.updates[key]
