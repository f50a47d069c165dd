"""The hysteresis, against a plain model of it and by its invariants."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.probes.keys import KEY_CHANGED, KEY_PROBE, bound_by_rounds, passed_over
from agent.probes.result import ProbeResult
from agent.probes.verdict import (
    Health,
    Thresholds,
    begin,
    fold,
    rebound,
    retarget,
    shows_another_key,
    views,
)
from simulator.manual_clock import ManualClock

NAMES = ("a", "b")
KEY = "11" * 32
OTHER_KEY = "22" * 32
thresholds = st.builds(Thresholds, st.integers(1, 4), st.integers(1, 4))
rounds = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30)


def result(name: str, passed: bool) -> ProbeResult:
    return ProbeResult(name, passed, "fine" if passed else f"{name} is down")


def play(history: list[tuple[bool, bool]], limits: Thresholds) -> list[Health]:
    clock, health = ManualClock(), begin(NAMES)
    states = [health]
    for outcome in history:
        clock.advance(1)
        observations = [result(n, p) for n, p in zip(NAMES, outcome, strict=True)]
        health = fold(health, observations, [KEY], clock.now(), limits)
        states.append(health)
    return states


def modelled_verdict(results: list[bool], limits: Thresholds) -> bool | None:
    """The newest run of equal results that was long enough, looked for from scratch."""
    verdict = None
    for end in range(1, len(results) + 1):
        for wanted, length in ((True, limits.success), (False, limits.failure)):
            if end >= length and all(r is wanted for r in results[end - length : end]):
                verdict = wanted
    return verdict


@given(rounds, thresholds)
def test_a_verdict_needs_its_number_of_results_in_a_row(
    history: list[tuple[bool, bool]], limits: Thresholds
) -> None:
    final = play(history, limits)[-1]
    verdicts = {state.name: state.verdict for state in final.probes}
    for index, name in enumerate(NAMES):
        assert verdicts[name] is modelled_verdict([r[index] for r in history], limits)


@given(rounds, thresholds)
def test_healthy_means_that_every_verdict_is_good_and_unhealthy_that_one_is_bad(
    history: list[tuple[bool, bool]], limits: Thresholds
) -> None:
    for health in play(history, limits):
        verdicts = [state.verdict for state in health.probes]
        assert (health.healthy is True) == all(v is True for v in verdicts)
        assert (health.healthy is False) == any(v is False for v in verdicts)


@given(rounds, thresholds)
def test_healthy_since_is_the_start_of_an_unbroken_run_of_passes_and_then_stays(
    history: list[tuple[bool, bool]], limits: Thresholds
) -> None:
    states = play(history, limits)
    for index, (before, after) in enumerate(pairwise(states)):
        assert (after.healthy_since is not None) == (after.healthy is True)
        if before.healthy and after.healthy:
            assert after.healthy_since == before.healthy_since
        elif after.healthy_since is not None:
            first = round(after.healthy_since.boottime_s - 1001)
            if all(history[index]):
                assert all(all(r) for r in history[first : index + 1])
            else:
                assert first == index


@given(rounds, thresholds)
def test_flaps_count_the_falls_from_health(
    history: list[tuple[bool, bool]], limits: Thresholds
) -> None:
    states = play(history, limits)
    falls = sum(a.healthy is True and b.healthy is False for a, b in pairwise(states))
    assert states[-1].flaps == falls


@given(rounds, thresholds)
def test_the_fault_is_of_a_probe_that_failed_last_and_there_is_none_when_all_passed(
    history: list[tuple[bool, bool]], limits: Thresholds
) -> None:
    final = play(history, limits)[-1]
    last = history[-1] if history else (True, True)
    failing = [name for name, passed in zip(NAMES, last, strict=True) if not passed]
    assert (final.fault.probe if final.fault else None) == (failing[0] if failing else None)


keys = st.lists(st.sampled_from([KEY, OTHER_KEY]), max_size=14)


def show(shown: list[str], limits: Thresholds, bound: str | None) -> list[Health]:
    """A round for each key, in which all else passes."""
    clock, health = ManualClock(), begin(("a",))
    states = []
    for key in shown:
        clock.advance(1)
        health = fold(health, [result("a", True)], [key], clock.now(), limits, bound=bound)
        states.append(health)
    return states


@given(keys, thresholds)
def test_before_a_key_is_bound_another_one_is_a_start_and_no_failure(
    shown: list[str], limits: Thresholds
) -> None:
    for index, health in enumerate(show(shown, limits, None)):
        assert health.healthy is not False
        assert health.fault is None
        assert health.key == shown[index]
        newest = shown[max(0, index + 1 - limits.success) : index + 1]
        if len(newest) == limits.success and len(set(newest)) == 1:
            assert health.healthy is True


def test_a_guest_whose_key_changes_before_it_was_healthy_has_to_show_the_new_one_as_often() -> (
    None
):
    states = show([KEY, OTHER_KEY, OTHER_KEY], Thresholds(2, 3), None)
    assert [health.healthy for health in states] == [None, None, True]


def test_a_key_that_changes_before_it_is_bound_leaves_a_healthy_guest_healthy_since_then() -> None:
    states = show([KEY, KEY, OTHER_KEY, OTHER_KEY], Thresholds(2, 3), None)
    assert {health.healthy_since for health in states[1:]} == {states[1].healthy_since}


@given(keys, thresholds)
def test_another_key_than_the_bound_one_is_borne_as_long_as_any_failure_and_no_longer(
    shown: list[str], limits: Thresholds
) -> None:
    for index, health in enumerate(show(shown, limits, KEY)):
        newest = shown[: index + 1]
        run = len(newest) - len(
            "".join("x" if k == OTHER_KEY else "." for k in newest).rstrip("x")
        )
        if run >= limits.failure:
            assert (health.healthy, shows_another_key(health)) == (False, True)
            assert health.fault is not None
            assert (health.fault.code, health.fault.probe) == (KEY_CHANGED, KEY_PROBE)
        if OTHER_KEY not in newest:
            assert health.healthy is not False


def test_a_restart_of_the_guests_server_does_not_make_a_healthy_guest_unhealthy() -> None:
    shown = [KEY] * 3 + [OTHER_KEY] * 2 + [KEY] * 3
    states = show(shown, Thresholds(2, 3), KEY)
    assert [health.healthy for health in states[1:]] == [True] * 7
    assert {health.healthy_since for health in states[1:]} == {states[1].healthy_since}


def test_the_bound_key_now_and_then_does_not_hide_another_one() -> None:
    states = show([KEY, KEY] + [OTHER_KEY, KEY] * 3, Thresholds(2, 3), KEY)
    assert states[-2].healthy is False


def test_another_key_in_the_middle_of_a_round_is_not_hidden_by_the_bound_one_after_it() -> None:
    limits = Thresholds(1, 1)
    health = fold(begin(()), (), [KEY, OTHER_KEY, KEY], ManualClock().now(), limits, bound=KEY)
    assert health.healthy is False


def test_what_counted_against_a_key_is_forgotten_when_it_is_bound() -> None:
    limits = Thresholds(2, 3)
    health = rebound(show([KEY, KEY, OTHER_KEY, OTHER_KEY], limits, KEY)[-1])
    again = fold(health, (), [OTHER_KEY], ManualClock().now(), limits, bound=OTHER_KEY)
    assert [view.failing for view in views(again, limits)] == [0, 0]
    assert again.fault is None


def test_a_round_speaks_for_a_key_only_if_all_of_it_passed_over_that_one() -> None:
    good, bad = result("a", True), result("b", False)
    assert passed_over([good], [KEY]) == KEY
    assert passed_over([good, bad], [KEY]) is None
    assert passed_over([good], [KEY, OTHER_KEY]) is None
    assert passed_over([good], []) is None
    assert passed_over([], [KEY]) is None


def test_only_two_rounds_over_the_same_key_bind_it() -> None:
    assert bound_by_rounds(KEY, KEY) == KEY
    assert bound_by_rounds(OTHER_KEY, KEY) is None
    assert bound_by_rounds(None, KEY) is None
    assert bound_by_rounds(KEY, None) is None
    assert bound_by_rounds(None, None) is None


def test_a_round_without_a_result_of_a_probe_leaves_it_as_it_is() -> None:
    limits, now = Thresholds(1, 1), ManualClock().now()
    health = fold(begin(NAMES), [result("a", True), result("b", True)], [KEY], now, limits)
    assert fold(health, [result("unknown", False)], (), now, limits) == health


def test_a_new_probe_of_a_known_launch_has_to_pass_first() -> None:
    limits, now = Thresholds(1, 1), ManualClock().now()
    health = fold(begin(("a",)), [result("a", True)], [KEY], now, limits)
    more = retarget(health, ("a", "b"))
    assert [view.passing for view in views(more, limits)] == [1, 0, 1]
    again = fold(more, [result("a", True)], [KEY], now, limits)
    assert again.healthy is None


def test_what_is_published_counts_passes_no_further_than_needed() -> None:
    limits, now = Thresholds(2, 3), ManualClock().now()
    health = begin(("a",))
    for _ in range(5):
        health = fold(health, [result("a", True)], [KEY], now, limits)
    shown = views(health, limits)[0]
    assert (shown.passing, shown.needed, shown.failing, shown.last) == (2, 2, 0, "fine")


def test_what_is_unknown_is_not_held_against_the_enclave_and_is_shown_as_that() -> None:
    limits, clock = Thresholds(success=2, failure=3), ManualClock()
    health = begin(("a",))
    silent = ProbeResult("a", True, "no key, no answer", unknown=True)
    for wanted in (None, True):
        health = fold(health, [silent], [KEY], clock.now(), limits)
        (shown,) = (one for one in views(health, limits) if one.name == "a")
        assert (shown.unknown, shown.passing, shown.failing) == (True, 0, 0)
        assert (health.healthy is True) is (wanted is True)
    for _ in range(limits.failure):
        health = fold(health, [result("a", False)], [KEY], clock.now(), limits)
    assert health.healthy is False
    health = fold(health, [silent], [KEY], clock.now(), limits)
    assert health.healthy is False, "one answer that tells nothing is not enough"
