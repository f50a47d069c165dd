"""Whether clients reach a listener, out of single attempts. Pure.

One success is enough: a client got through. A failure is believed after as many in a row as of any
other probe. What cannot be told (an address that is not on this host now) changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.model.clock import Instant
from agent.model.resources import Listen
from agent.probes.port import ListenerReach


@dataclass(frozen=True, slots=True)
class Attempt:
    """`problem` None: it was answered. `by_outside`: asked as a client elsewhere would ask."""

    problem: str | None
    by_outside: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """One listener. `failing`: attempts in a row. `since`: of what `reached` says.

    `tried`: at all, whatever came of it.
    """

    listen: Listen
    reached: bool | None = None
    since: Instant | None = None
    failing: int = 0
    problem: str | None = None
    by_outside: bool = False
    tried: bool = False

    @property
    def view(self) -> ListenerReach:
        return ListenerReach(
            listen=self.listen,
            reached=self.reached,
            since=self.since,
            problem=self.problem,
            by_outside=self.by_outside,
            doubtful=not self.tried or (self.failing > 0 and self.reached is not False),
        )


def after(reach: Reach, attempt: Attempt | None, now: Instant, threshold: int) -> Reach:
    """With one more attempt; None: nothing could be told, and what was known stands."""
    if attempt is None:
        return replace(reach, failing=0, tried=True)
    failing = 0 if attempt.problem is None else reach.failing + 1
    reached = reach.reached
    if attempt.problem is None:
        reached = True
    elif failing >= threshold:
        reached = False
    return Reach(
        listen=reach.listen,
        reached=reached,
        since=reach.since if reached is reach.reached else now,
        failing=failing,
        problem=attempt.problem,
        by_outside=attempt.by_outside,
        tried=True,
    )
