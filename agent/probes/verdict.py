"""Health out of single checks: hysteresis, and nothing else. Pure.

Invariants: a probe changes its verdict only after so many results of the other kind in a row; an
enclave is healthy only while every probe's verdict is good. `healthy_since` does not move while it
is: when it becomes healthy, it is the moment since which every probe has passed without a failure
in between, so that the results that made the verdict count into a dwell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.model.clock import Instant
from agent.model.revision import Fault
from agent.probes.port import ProbeView

KEY_PROBE = "tls-key"
KEY_CHANGED = "key_changed"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How many results in a row make a verdict."""

    success: int
    failure: int


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One result of one probe. `answer` is printable and short; `code` is for a failure.

    `unknown`: the answer tells nothing of what was asked about. It is not held against the
    enclave, so it counts into the same runs as a pass, and is shown as what it is.
    """

    probe: str
    passed: bool
    answer: str
    code: str = "probe_failed"
    decisive: bool = False  # one failure is enough for a verdict
    unknown: bool = False


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
    """All probes of one launch. `flaps`: how often a healthy enclave became unhealthy."""

    probes: tuple[ProbeState, ...] = ()
    healthy: bool | None = None
    healthy_since: Instant | None = None
    flaps: int = 0
    fault: Fault | None = None
    first_key: str | None = None
    key: str | None = None


def begin(names: Iterable[str]) -> Health:
    """No results yet. The probe of the key is always among them."""
    return Health(probes=tuple(ProbeState(name) for name in dict.fromkeys((*names, KEY_PROBE))))


def retarget(health: Health, names: Iterable[str]) -> Health:
    """Other probes for the same launch: those that stay keep their results."""
    known = {state.name: state for state in health.probes}
    wanted = dict.fromkeys((*names, KEY_PROBE))
    return replace(health, probes=tuple(known.get(n, ProbeState(n)) for n in wanted))


def fold(
    health: Health,
    observations: Iterable[ProbeResult],
    keys: Iterable[str],
    now: Instant,
    thresholds: Thresholds,
) -> Health:
    """Take in the results of one round, and the keys that its connections showed, in order.

    Results of unknown probes are left out; a probe without a result stays as it is.
    """
    first, key = health.first_key, health.key
    results = {o.probe: o for o in observations}
    for key in keys:
        first = first or key
        if KEY_PROBE not in results or results[KEY_PROBE].passed:
            results[KEY_PROBE] = _judge_key(first, key)
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
        first_key=first,
        key=key,
    )


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


def _judge_key(first: str, key: str) -> ProbeResult:
    if key == first:
        return ProbeResult(KEY_PROBE, True, f"sha256:{key}")
    return ProbeResult(
        KEY_PROBE,
        False,
        f"TLS showed key sha256:{key}, but this launch began with sha256:{first}",
        KEY_CHANGED,
        decisive=True,
    )


def _step(
    state: ProbeState, result: ProbeResult, now: Instant, thresholds: Thresholds
) -> ProbeState:
    if result.passed:
        passing = state.passing + 1
        return replace(
            state,
            passing=passing,
            failing=0,
            passing_since=state.passing_since or now,
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
    """Of the probes whose newest result is a failure: a decisive one, else the first."""
    failing = [state.last for state in probes if state.last and not state.last.passed]
    worst = next((last for last in failing if last.decisive), next(iter(failing), None))
    if worst is None:
        return None
    return Fault(code=worst.code, detail=worst.answer, probe=worst.probe)
