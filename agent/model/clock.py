"""Instants. Deadlines run on CLOCK_BOOTTIME with the boot id, because the wall clock may jump."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

import msgspec


class Instant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A moment on this host: which boot, seconds since that boot, and the wall clock for print."""

    boot_id: str
    boottime_s: float
    wall: dt.datetime

    def plus(self, seconds: float) -> Instant:
        """The moment so many seconds later in the same boot."""
        return Instant(
            boot_id=self.boot_id,
            boottime_s=self.boottime_s + seconds,
            wall=self.wall + dt.timedelta(seconds=seconds),
        )

    def since(self, earlier: Instant) -> float | None:
        """Seconds passed since `earlier`; None if the host was rebooted between."""
        if self.boot_id != earlier.boot_id:
            return None
        return self.boottime_s - earlier.boottime_s

    def reached(self, deadline: Instant) -> bool:
        """Whether the deadline is past; a deadline of an earlier boot is."""
        passed = self.since(deadline)
        return passed is None or passed >= 0


def within(moments: Iterable[Instant], seconds: float, now: Instant) -> tuple[Instant, ...]:
    """Those of the last so many seconds of this boot."""
    return tuple(
        at for at in moments if (passed := now.since(at)) is not None and passed < seconds
    )


def until_beat(period_s: float, now_s: float) -> float:
    """The pause to a whole multiple of the period: at least half of it, at most one and a half.

    What may be a little late is done at moments that all share: for eight enclaves in one go it
    costs much less than at eight moments, since the processor has it all at hand.
    """
    since = now_s % period_s
    return period_s - since if since <= period_s / 2 else 2 * period_s - since
