"""A clock that moves only when told."""

from __future__ import annotations

import datetime as dt

from agent.model.clock import Instant


class ManualClock:
    """A clock that moves only when told: for tests and simulation."""

    def __init__(self, boottime_s: float = 1000.0, boot_id: str = "boot-1") -> None:
        self._boot_id = boot_id
        self._boottime_s = boottime_s
        self._wall = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def now(self) -> Instant:
        return Instant(boot_id=self._boot_id, boottime_s=self._boottime_s, wall=self._wall)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._boottime_s += seconds
        self._wall += dt.timedelta(seconds=seconds)

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, as an administrator or NTP would."""
        self._wall += dt.timedelta(seconds=seconds)

    def reboot(self, boot_id: str) -> None:
        """Begin another boot."""
        self._boot_id = boot_id
        self._boottime_s = 10.0
