"""Durations as container tools write them: `30s`, `5m`, `1h30m`, `1m30s`, `1.5h`, `500ms`.

The grammar is that of Go's time.ParseDuration, without a sign; a bare number is seconds, as the
guest takes it.
"""

from __future__ import annotations

import re

LONGEST_S = 7 * 24 * 3600

_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # U+00B5, micro sign
    "μs": 1e-6,  # U+03BC, Greek letter mu
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PART = re.compile(_NUMBER + r"(ns|us|µs|μs|ms|s|m|h)")
_BARE = re.compile(_NUMBER)
_RULE = "must be a duration such as 30s, 5m or 1h30m"


def parse_duration(value: object) -> float:
    """Seconds, 0 to 7 days; ValueError with the rule for anything else."""
    seconds = _seconds(value)
    if not 0 <= seconds <= LONGEST_S:  # also refuses what is not a number at all (.nan)
        raise ValueError(f"must be 0 to {LONGEST_S // 3600} hours")
    return seconds


def _seconds(value: object) -> float:
    match value:
        case str():
            return _from_text(value)
        case int() | float() if not isinstance(value, bool):
            return float(value) if abs(value) <= LONGEST_S else float(LONGEST_S + 1)
    raise ValueError(_RULE)


def _from_text(text: str) -> float:
    if not text or len(text) > 64:
        raise ValueError(_RULE)
    if _BARE.fullmatch(text):
        return float(text)
    seconds, position = 0.0, 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            raise ValueError(_RULE)
        seconds += float(part[1]) * _UNITS_S[part[2]]
        position = part.end()
    return seconds
