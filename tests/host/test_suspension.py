"""Whether the host was suspended, by two clocks."""

from __future__ import annotations

from agent.host.suspension import Suspensions


def test_a_suspension_is_told_once_with_its_length() -> None:
    clocks = {"boottime": 500.0, "monotonic": 400.0}
    suspensions = Suspensions(lambda: clocks["boottime"], lambda: clocks["monotonic"])
    for name in clocks:
        clocks[name] += 60
    clocks["boottime"] += 0.3  # the clocks are not read at once
    assert suspensions.slept_s() == 0
    clocks["boottime"] += 3600
    assert 3600 <= suspensions.slept_s() < 3601
    assert suspensions.slept_s() == 0


def test_this_host_was_not_suspended_between_two_looks() -> None:
    assert Suspensions().slept_s() == 0
