"""What a person should know, and what mends it. A value."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alarm:
    """See `agent.updates.snapshot.snapshot.Problem`."""

    code: str
    severity: str
    detail: str
    mend: str
    since: dt.datetime | None = None  # None: since it was first shown
