"""When to ask next. Pure.

Until an enclave is healthy for the first time it is asked often, so that nobody waits for a Ready
that is there already: the pauses are a small share of the time that has passed, so that neither a
guest of seconds is found late nor one of twenty minutes is hammered.
"""

from __future__ import annotations

from agent.model.clock import until_beat

_SHORTEST_S = 0.1
_SHARE = 0.02


def until_first_healthy_s(elapsed_s: float, interval_s: float) -> float:
    """The pause while nothing was ever healthy, so long after the watch began."""
    return min(interval_s, max(_SHORTEST_S, _SHARE * elapsed_s))


def confirm_s(interval_s: float) -> float:
    """The pause when all passed and only the threshold of successes is not reached."""
    return min(interval_s, _SHORTEST_S)


def steady_s(interval_s: float, now_s: float) -> float:
    """The pause of the everyday: to the moment that all enclaves of this host share."""
    return until_beat(interval_s, now_s)
