"""Moments as they are told, and rows in the order of their moments, when the wall clock is set."""

from __future__ import annotations

import datetime as dt

import pytest

from agent.model.clock import oldest_first
from simulator.manual_clock import ManualClock
from simulator.rows import enclave

HOUR_S = 3600


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_moment_is_told_by_the_wall_clock_as_it_is_set_now(step_s: int) -> None:
    clock = ManualClock()
    begun = clock.now()
    clock.advance(60)
    clock.jump_wall(step_s)
    now = clock.now()
    assert now.wall - begun.shown(now) == dt.timedelta(seconds=60)
    assert now.plus(5).shown(now) == now.wall + dt.timedelta(seconds=5)


def test_without_a_step_it_is_told_as_it_was_recorded() -> None:
    clock = ManualClock()
    begun = clock.now()
    clock.advance(60)
    clock.jump_wall(0.01)  # the two clocks are read one after the other
    assert begun.shown(clock.now()) == begun.wall


def test_of_an_earlier_boot_only_its_own_wall_clock_is_known() -> None:
    clock = ManualClock()
    begun = clock.now()
    clock.reboot("boot-2")
    clock.jump_wall(-HOUR_S)
    assert begun.shown(clock.now()) == begun.wall


def test_what_was_made_first_comes_first_whatever_the_wall_clock_said_and_in_which_boot() -> None:
    clock = ManualClock()
    rows = [enclave("dddddddd", created_at=clock.now())]
    clock.reboot("boot-2")
    for name, step_s in (("cccccccc", HOUR_S), ("bbbbbbbb", -HOUR_S), ("aaaaaaaa", 0)):
        clock.advance(1)
        clock.jump_wall(step_s)
        rows.append(enclave(name, created_at=clock.now()))
    assert oldest_first(reversed(rows)) == rows
