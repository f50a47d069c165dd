"""What a person should know, and what mends it. A value."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.clock import Instant


@dataclass(frozen=True, slots=True)
class Alarm:
    """See `agent.updates.snapshot.snapshot.Problem`."""

    code: str
    severity: str
    detail: str
    mend: str
    since: Instant | None = None  # None: since it was first shown
