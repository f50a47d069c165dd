"""Instants. Deadlines run on CLOCK_BOOTTIME with the boot id, because the wall clock may jump."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec

_STEP_S = 1.0  # by less the two clocks differ because they are not read at once


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

    def shown(self, now: Instant) -> dt.datetime:
        """When it was by the wall clock as that is set now: how a moment is told to others.

        The wall clock may have been set since. By the one of then, what is past could lie ahead
        of now, and what took a second could have taken an hour. Of another boot only that is
        known.
        """
        passed = now.since(self)
        if passed is None:
            return self.wall
        by_now = now.wall - dt.timedelta(seconds=passed)
        was_set = abs((by_now - self.wall).total_seconds()) >= _STEP_S
        return by_now if was_set else self.wall


def within(moments: Iterable[Instant], seconds: float, now: Instant) -> tuple[Instant, ...]:
    """Those of the last so many seconds of this boot."""
    return tuple(
        at for at in moments if (passed := now.since(at)) is not None and passed < seconds
    )


class Created(Protocol):
    """A row that says when it was made."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> Instant: ...


R = TypeVar("R", bound=Created)


def oldest_first(rows: Iterable[R]) -> list[R]:
    """In the order in which they were made, however the wall clock was set meanwhile.

    Only which of two boots was the earlier one is told by it.
    """
    found = list(rows)
    boots: dict[str, dt.datetime] = {}
    for row in found:
        at = row.created_at
        boots[at.boot_id] = min(at.wall, boots.get(at.boot_id, at.wall))

    def place(row: R) -> tuple[dt.datetime, str, float, str]:
        at = row.created_at
        return boots[at.boot_id], at.boot_id, at.boottime_s, row.id

    return sorted(found, key=place)


def until_beat(period_s: float, now_s: float) -> float:
    """The pause to a whole multiple of the period: at least half of it, at most one and a half.

    What may be a little late is done at moments that all share: for eight enclaves in one go it
    costs much less than at eight moments, since the processor has it all at hand.
    """
    since = now_s % period_s
    return period_s - since if since <= period_s / 2 else 2 * period_s - since
