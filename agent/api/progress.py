"""How far an update is, in percent: a pure guess by steps, never going back on the good path.

A step's share is about its share of the time: the boot takes most. There is no percentage of an
update that is on its way to failure.
"""

from __future__ import annotations

from agent.model.update import Decided, Step, Update
from agent.probes.port import HealthView

# Where each step begins and ends.
_SPANS: dict[Step, tuple[int, int]] = {
    Step.PREPARE: (0, 10),
    Step.STOP_OLD: (10, 15),
    Step.RELEASE: (15, 18),
    Step.LAUNCH: (18, 22),
    Step.BOOT: (22, 60),
    Step.VERIFY: (60, 80),
    Step.ACCEPT: (80, 80),
    Step.SWITCH: (80, 84),
    Step.SOAK: (84, 92),
    Step.DRAIN: (92, 97),
    Step.RETIRE: (97, 99),
}
_USUAL_STAGES = 12
_PASSED = frozenset({"ok", "skipped", "warning"})


def percent_of(update: Update, health: HealthView | None) -> int | None:
    """0 to 100; None for what failed, was cancelled, or is being undone."""
    if update.decided is Decided.COMPLETE:
        return 100
    if update.decided in {Decided.FAIL, Decided.CANCEL}:
        return None
    span = _SPANS.get(update.step)
    if span is None:
        return None
    first, last = span
    return first + int((last - first) * _within(update.step, health))


def _within(step: Step, health: HealthView | None) -> float:
    """The part of the step that is done, 0 to 1."""
    if health is None:
        return 0.0
    if step is Step.BOOT:
        return _booted(health)
    if step is Step.VERIFY and health.probes:
        passing = sum(
            probe.needed if probe.unknown else min(probe.passing, probe.needed)
            for probe in health.probes
        )
        return passing / max(1, sum(probe.needed for probe in health.probes))
    return 0.0


def _booted(health: HealthView) -> float:
    """By what the guest says, which may be anything."""
    stages = (health.boot_stages or {}).get("stages")
    if not isinstance(stages, list):
        return 0.0
    passed = sum(
        1 for stage in stages if isinstance(stage, dict) and stage.get("status") in _PASSED
    )
    return passed / max(_USUAL_STAGES, len(stages))
