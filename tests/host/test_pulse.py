"""Whether the loops progress."""

from __future__ import annotations

from agent.host.clock import ManualClock
from agent.host.liveness import Pulse


def test_a_loop_that_does_not_come_back_is_late_until_it_does() -> None:
    clock = ManualClock()
    pulse = Pulse(clock)
    pulse.promise("outlook", 10)
    clock.advance(9)
    assert pulse.late() == ()
    clock.advance(2)
    assert pulse.late() == ("outlook",)
    pulse.promise("outlook", 10)
    assert pulse.late() == ()


def test_a_loop_that_waits_for_news_is_never_late() -> None:
    clock = ManualClock()
    pulse = Pulse(clock)
    with pulse.busy("reconcile web", 5):
        clock.advance(6)
        assert pulse.late() == ("reconcile web",)
    clock.advance(1000)
    assert pulse.late() == ()
