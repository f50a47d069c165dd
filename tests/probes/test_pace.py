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


@given(intervals, seconds)
def test_the_everyday_pause_ends_when_that_of_all_others_does(
    interval_s: float, now_s: float
) -> None:
    pause = steady_s(interval_s, now_s)
    assert 0.499 * interval_s <= pause <= 1.501 * interval_s
    beats = (now_s + pause) / interval_s
    assert abs(beats - round(beats)) < 1e-6 * max(1, beats)
