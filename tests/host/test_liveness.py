"""Whether the loops progress."""

from __future__ import annotations

from agent.host.liveness import Liveness


class Monotonic:
    """A clock that moves only when told."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_loop_that_does_not_come_back_is_late_until_it_does() -> None:
    clock = Monotonic()
    liveness = Liveness(clock)
    liveness.promise("outlook", 10)
    clock.now_s += 9
    assert liveness.late() == ()
    clock.now_s += 2
    assert liveness.late() == ("outlook",)
    liveness.promise("outlook", 10)
    assert liveness.late() == ()


def test_a_loop_that_waits_for_news_is_never_late() -> None:
    clock = Monotonic()
    liveness = Liveness(clock)
    with liveness.busy("reconcile web", 5):
        clock.now_s += 6
        assert liveness.late() == ("reconcile web",)
    clock.now_s += 1000
    assert liveness.late() == ()
