"""How often a device is tried again, how often it may be reset, and how trying ends. Pure.

What fails is tried a few times, with growing pauses, and then ends as a state: a mode that the
device lacks (it is used in the others), or a quarantine. What waits for somebody else (a holder,
an owner, an absent tool) touches nothing and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from agent.errors import AgentError, describe
from agent.inventory.preparation.errors import (
    BindingError,
    ModeError,
    ModeNotAppliedError,
    ModeUnsupportedError,
    PreparationError,
    RecoveryError,
    StuckError,
    UnqualifiedError,
)
from agent.inventory.preparation.modes import ToolReport
from agent.model.clock import Instant, within
from agent.model.gpu import RESETS_AN_HOUR, CcMode, ModeLimit
from agent.model.preparation import GpuCondition

TRIES = 4
MODE_TRIES = 3
HOUR_S = 3600.0
_PAUSES_S = (10.0, 60.0, 300.0)
_MODE_OF = {"cc": CcMode.ON, "ppcie": CcMode.PPCIE}


class Ending(NamedTuple):
    """A row after a failure; `quarantine`: why its device is not tried any more."""

    row: GpuCondition
    quarantine: str | None = None


def pause_s(failures: int) -> float:
    """How long to leave it alone after so many failures in a row."""
    return 0.0 if failures <= 0 else _PAUSES_S[min(failures, len(_PAUSES_S)) - 1]


def is_due(row: GpuCondition, now: Instant) -> bool:
    """Whether it may be tried again already."""
    passed = now.since(row.since)
    return passed is None or passed >= pause_s(row.failures)


def resets_spent(row: GpuCondition, now: Instant) -> str | None:
    """Why it may not be reset again yet; None if it may."""
    recent = within(row.resets, HOUR_S, now)
    if len(recent) < RESETS_AN_HOUR:
        return None
    again = recent[-RESETS_AN_HOUR].plus(HOUR_S).shown(now)
    return f"it was reset {len(recent)} times within an hour; not again before {again:%H:%M} UTC"


def after_failure(row: GpuCondition, error: AgentError, kinds: Sequence[str]) -> Ending:
    """What `error` makes of the row of the device that it is about. `kinds`: its kinds of mode."""
    if isinstance(error, UnqualifiedError | StuckError | RecoveryError):
        return Ending(row, describe(error))
    if isinstance(error, ModeNotAppliedError):
        row = msgspec.structs.replace(row, mode_failures=row.mode_failures + 1)
    decided = isinstance(error, ModeUnsupportedError) or row.mode_failures >= MODE_TRIES
    if isinstance(error, ModeError) and error.mode is not None and decided:
        limit = ModeLimit(
            mode=error.mode, code=error.code, detail=describe(error), mend=error.mend
        )
        return limited(row, (limit,), kinds)
    if not isinstance(error, ModeError | BindingError):
        return Ending(row)
    row = msgspec.structs.replace(row, failures=row.failures + 1)
    tried = f"{describe(error)} (tried {row.failures} times); {error.mend}"
    return Ending(row, tried if row.failures >= TRIES else None)


def after_report(row: GpuCondition, report: ToolReport, kinds: Sequence[str]) -> Ending:
    """What the tool's word makes of it, where it names kinds of mode that the device has not."""
    limits = [
        ModeLimit(
            mode=_MODE_OF[kind],
            code="gpu_mode_unsupported",
            detail=f"{row.bdf}: the GPU tool finds no {kind} mode in it",
            mend="give it a firmware that has the mode, or use it where guests are not "
            "confidential",
        )
        for kind in report.unsupported
    ]
    return limited(row, limits, kinds)


def limited(row: GpuCondition, limits: Sequence[ModeLimit], kinds: Sequence[str]) -> Ending:
    """With these modes out of reach; of a GPU that has no other left nothing can be used.

    A switch goes on: boards whose GPUs are given out singly do not need its mode.
    """
    if not limits:
        return Ending(row)
    new = {limit.mode: limit for limit in (*row.limits, *limits)}
    row = msgspec.structs.replace(row, limits=tuple(new.values()), mode_failures=0)
    left = {_MODE_OF[kind] for kind in kinds} - set(new)
    if left or "cc" not in kinds:
        return Ending(row)
    why = "; ".join(f"{limit.detail}; {limit.mend}" for limit in new.values())
    return Ending(row, f"no confidential guest can have it: {why}")


def waits(error: AgentError) -> bool:
    """Whether nothing was done, for somebody else's sake: it is asked again, for ever."""
    counted = isinstance(error, UnqualifiedError | ModeError | BindingError)
    return not isinstance(error, PreparationError) or not counted
