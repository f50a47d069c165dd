"""Health out of single checks: hysteresis, and nothing else. Pure.

Invariants: a probe changes its verdict only after so many results of the other kind in a row; an
enclave is healthy only while every probe's verdict is good. `healthy_since` does not move while it
is: when it becomes healthy, it is the moment since which every probe has passed without a failure
in between, so that the results that made the verdict count into a dwell.

The key's probe is stricter than the others: one look at the bound key among looks at another one
does not make those forgotten, it takes as many in a row as make a good verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from agent.model.clock import Instant
from agent.model.revision import Fault
from agent.probes.keys import KEY_PROBE, judge_keys
from agent.probes.port import ProbeView
from agent.probes.result import ProbeResult


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How many results in a row make a verdict."""

    success: int
    failure: int


@dataclass(frozen=True, slots=True)
class ProbeState:
    """One probe's run of results. `verdict` None: not enough results yet."""

    name: str
    passing: int = 0
    failing: int = 0
    verdict: bool | None = None
    passing_since: Instant | None = None
    last: ProbeResult | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """All probes of one launch. `flaps`: how often a healthy enclave became unhealthy.

    `key`: the newest one that was shown.
    """

    probes: tuple[ProbeState, ...] = ()
    healthy: bool | None = None
    healthy_since: Instant | None = None
    flaps: int = 0
    fault: Fault | None = None
    key: str | None = None


def begin(names: Iterable[str]) -> Health:
    """No results yet. The probe of the key is always among them."""
    return Health(probes=tuple(ProbeState(name) for name in dict.fromkeys((*names, KEY_PROBE))))


def retarget(health: Health, names: Iterable[str]) -> Health:
    """Other probes for the same launch: those that stay keep their results."""
    known = {state.name: state for state in health.probes}
    wanted = dict.fromkeys((*names, KEY_PROBE))
    return replace(health, probes=tuple(known.get(n, ProbeState(n)) for n in wanted))


def rebound(health: Health) -> Health:
    """Another key is bound from here on: what was counted against it is worth nothing."""
    probes = tuple(
        replace(state, failing=0) if state.name == KEY_PROBE else state for state in health.probes
    )
    return replace(health, probes=probes)


def fold(
    health: Health,
    observations: Iterable[ProbeResult],
    keys: Sequence[str],
    now: Instant,
    thresholds: Thresholds,
    *,
    bound: str | None = None,
) -> Health:
    """Take in the results of one round, and the keys that its connections showed, in order.

    Results of unknown probes are left out; a probe without a result stays as it is. `bound`: the
    only key that may be shown, once there is one.
    """
    results = {o.probe: o for o in observations}
    if (shown := judge_keys(bound, health.key, keys)) is not None:
        results[KEY_PROBE] = shown
    probes = tuple(
        _step(state, results[state.name], now, thresholds) if state.name in results else state
        for state in health.probes
    )
    healthy = _verdict(probes)
    return Health(
        probes=probes,
        healthy=healthy,
        healthy_since=_since(health, probes, now) if healthy else None,
        flaps=health.flaps + (health.healthy is True and healthy is False),
        fault=_fault(probes),
        key=keys[-1] if keys else health.key,
    )


def shows_another_key(health: Health) -> bool:
    """Whether another key than the bound one was shown for longer than is borne."""
    return any(state.name == KEY_PROBE and state.verdict is False for state in health.probes)


def views(health: Health, thresholds: Thresholds) -> tuple[ProbeView, ...]:
    """As they are published. What is unknown has passed nothing."""
    return tuple(
        ProbeView(
            name=state.name,
            passing=0 if is_unknown(state) else min(state.passing, thresholds.success),
            needed=thresholds.success,
            failing=state.failing,
            unknown=is_unknown(state),
            last=state.last.answer if state.last else None,
        )
        for state in health.probes
    )


def is_unknown(state: ProbeState) -> bool:
    """Whether the newest result of a probe tells nothing."""
    return state.last is not None and state.last.unknown


def _step(
    state: ProbeState, result: ProbeResult, now: Instant, thresholds: Thresholds
) -> ProbeState:
    if result.passed:
        passing = 1 if result.afresh else state.passing + 1
        forgiven = state.name != KEY_PROBE or passing >= thresholds.success
        return replace(
            state,
            passing=passing,
            failing=0 if forgiven else state.failing,
            passing_since=now if result.afresh else state.passing_since or now,
            verdict=True if passing >= thresholds.success else state.verdict,
            last=result,
        )
    failing = state.failing + 1
    final = result.decisive or failing >= thresholds.failure
    return replace(
        state,
        passing=0,
        failing=failing,
        passing_since=None,
        verdict=False if final else state.verdict,
        last=result,
    )


def _verdict(probes: Iterable[ProbeState]) -> bool | None:
    verdicts = {state.verdict for state in probes}
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _since(before: Health, probes: Iterable[ProbeState], now: Instant) -> Instant:
    if before.healthy and before.healthy_since:
        return before.healthy_since
    moments = [state.passing_since or now for state in probes]
    return max(moments, key=lambda moment: moment.boottime_s, default=now)


def _fault(probes: Iterable[ProbeState]) -> Fault | None:
    """Of the probes whose newest result is a failure: a decisive one, else the first.

    A key that is shown for too long comes before all: whoever shows it gave the other answers too.
    """
    failing = [(state, state.last) for state in probes if state.last and not state.last.passed]
    grave = [last for state, last in failing if state.name == KEY_PROBE and state.verdict is False]
    grave += [last for _, last in failing if last.decisive]
    worst = next(iter((*grave, *(last for _, last in failing))), None)
    if worst is None:
        return None
    return Fault(code=worst.code, detail=worst.answer, probe=worst.probe, response=worst.answer)
