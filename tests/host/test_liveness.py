"""Whether the loops progress."""

from __future__ import annotations

from agent.host.liveness import Liveness
from simulator.manual_clock import ManualClock


def test_a_loop_that_does_not_come_back_is_late_until_it_does() -> None:
    clock = ManualClock()
    liveness = Liveness(clock)
    liveness.promise("outlook", 10)
    clock.advance(9)
    assert liveness.late() == ()
    clock.advance(2)
    assert liveness.late() == ("outlook",)
    liveness.promise("outlook", 10)
    assert liveness.late() == ()


def test_a_loop_that_waits_for_news_is_never_late() -> None:
    clock = ManualClock()
    liveness = Liveness(clock)
    with liveness.busy("reconcile web", 5):
        clock.advance(6)
        assert liveness.late() == ("reconcile web",)
    clock.advance(1000)
    assert liveness.late() == ()
