"""The pauses between rounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.probes.pace import confirm_s, steady_s, until_first_healthy_s

seconds = st.floats(0, 1e6)
intervals = st.floats(0.01, 1000)


@given(seconds, intervals)
def test_a_ready_guest_is_found_within_a_small_share_of_its_start_or_an_interval(
    elapsed_s: float, interval_s: float
) -> None:
    pause = until_first_healthy_s(elapsed_s, interval_s)
    assert 0 < pause <= interval_s
    assert pause <= max(0.1, 0.05 * elapsed_s)


@given(intervals)
def test_confirming_is_never_slower_than_the_everyday(interval_s: float) -> None:
    assert confirm_s(interval_s) <= interval_s


@given(intervals, st.floats(0, 1, exclude_max=True))
def test_the_everyday_pause_is_the_interval_give_or_take_a_tenth(
    interval_s: float, chance: float
) -> None:
    assert 0.89 * interval_s < steady_s(interval_s, chance) < 1.11 * interval_s
