"""What the watchers of the host's network say: what they mended, what a person should mend.

Written by any number of watchers, read by one. Each repair and each problem that comes or goes is
an event, once. Somebody who changes the same thing again and again is told of so often a minute;
the rest is counted, and the next event says how many there were.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from agent.host.wake import Wake
from agent.model.event import EventDraft

_MOST_A_MINUTE = 30
_MINUTE_S = 60.0
KIND = "network"  # of the events that are of no deployment alone
REPAIRED = ("link", "data_plane", "forwarding")


@dataclass(frozen=True, slots=True)
class NetworkProblem:
    """What a person should mend. `severity`: info, warning or error."""

    code: str
    severity: str
    detail: str
    mend: str


class NetworkNews:
    """`changed` is rung for every event; `repairs` counts what was mended, by what it was.

    `stirred` is rung whenever somebody changed what clients' packets pass, whatever came of it.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.changed = Wake()
        self.stirred = Wake()
        self.repairs: Counter[str] = Counter()
        self._monotonic = monotonic
        self._problems: dict[str, Mapping[str, NetworkProblem]] = {}
        self._events: list[EventDraft] = []
        self._told_at: deque[float] = deque(maxlen=_MOST_A_MINUTE)
        self._untold = 0

    @property
    def problems(self) -> dict[str, NetworkProblem]:
        """All that hold now, by a key of their own."""
        return {key: one for all_of in self._problems.values() for key, one in all_of.items()}

    def show(self, watcher: str, problems: Mapping[str, NetworkProblem]) -> None:
        """All that one watcher finds wrong now; what is not among them any more is mended."""
        before = self._problems.get(watcher, {})
        self._problems[watcher] = dict(problems)
        for key, problem in problems.items():
            if key not in before:
                self._tell(EventDraft(kind=KIND, to=problem.code, reason=problem.detail))
        for key, problem in before.items():
            if key not in problems:
                self._tell(EventDraft(kind=KIND, from_=problem.code, to="mended"))
        if problems != before:
            self.changed.notify()

    def repaired(self, what: str, draft: EventDraft) -> None:
        """Something of ours was changed by another, and put back. `what`: a word to count by."""
        self.repairs[what] += 1
        self._tell(draft)

    def noticed(self, draft: EventDraft) -> None:
        """Something happened that is neither a repair nor a problem."""
        self._tell(draft)

    def take(self) -> list[EventDraft]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def _tell(self, draft: EventDraft) -> None:
        now = self._monotonic()
        full = len(self._told_at) == _MOST_A_MINUTE
        if full and now - self._told_at[0] < _MINUTE_S:
            self._untold += 1
            return
        if self._untold:
            more = f"{draft.reason or ''} (and {self._untold} more within a minute)"
            draft = msgspec.structs.replace(draft, reason=more.strip())
            self._untold = 0
        self._told_at.append(now)
        self._events.append(draft)
        self.changed.notify()
