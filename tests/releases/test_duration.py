"""Durations: what container tools write is read, nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.releases.duration import LONGEST_S, parse_duration

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("120m", 7200),
        ("1h30m", 5400),
        ("1m30s", 90),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("2.s", 2),
        ("500ms", 0.5),
        ("1s500ms", 1.5),
        ("0", 0),
        ("0s", 0),
        ("30", 30),
        ("1.5", 1.5),
        (30, 30),
        (0, 0),
        (1.5, 1.5),
        ("168h", LONGEST_S),
    ],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", " ", "s", "5 s", " 5s", "5s ", "5s\n", "-5s", "+5s", "5S", "5sec", "5d", "1h30", "1,5s",
     "1e3s", "0x5s", "٣s", "5s5", "..5s", ".s", "1..5s", "9" * 65, "168h1ns1s", "169h", -1,
     LONGEST_S + 1, 10**400, float("nan"), float("inf"), float("-inf"), True, False, None, [], {},
     b"5s"],
)  # fmt: skip
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_duration(value)


@given(
    st.lists(st.tuples(st.integers(0, 59), st.sampled_from(list(UNITS))), min_size=1, max_size=6)
)
def test_parts_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    expected = sum(number * UNITS[unit] for number, unit in parts)
    if expected <= LONGEST_S:
        assert parse_duration(text) == pytest.approx(expected)
    else:
        with pytest.raises(ValueError, match="must be 0 to 168 hours"):
            parse_duration(text)


@given(st.text(max_size=80))
def test_any_text_is_a_duration_within_bounds_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds <= LONGEST_S
