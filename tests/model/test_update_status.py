"""The public status of an update, in a table; and that every state has its row there."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from agent.model.reasons import Strategy
from agent.model.update import (
    Decided,
    Finished,
    Step,
    UpdateState,
    UpdateStatus,
    status_of,
    step_of,
)

# What an update is called in a step while nothing is decided; a staged stop_then_start waits for
# accept before anything of it was booted.
UNDECIDED = {
    Step.PREPARE: "pending",
    Step.STOP_OLD: "pending",
    Step.RELEASE: "pending",
    Step.LAUNCH: "pending",
    Step.BOOT: "started",
    Step.VERIFY: "started",
    Step.ACCEPT: "ready",
    Step.SWITCH: "ready",
    Step.SOAK: "ready",
    Step.DRAIN: "ready",
    Step.RETIRE: "ready",
    Step.REVERT: "failed",
    Step.TEARDOWN: "failed",
}
DECIDED = {
    Decided.SWITCH: "ready",
    Decided.COMPLETE: "completed",
    Decided.FAIL: "failed",
    Decided.CANCEL: "cancelled",
}
ALL = list(itertools.product(Strategy, Step, Decided))


@pytest.mark.parametrize(("strategy", "step", "decided"), ALL)
def test_the_status_is_that_of_the_table(strategy: Strategy, step: Step, decided: Decided) -> None:
    if decided is not Decided.UNDECIDED:
        wanted = DECIDED[decided]
    elif strategy is Strategy.STOP_THEN_START and step is Step.ACCEPT:
        wanted = "pending"
    else:
        wanted = UNDECIDED[step]
    assert status_of(strategy, step, decided) == wanted


def test_every_status_is_somebodys() -> None:
    assert {status_of(*one) for one in ALL} == set(UpdateStatus)


def test_every_state_has_a_step_and_every_step_is_some_states() -> None:
    states = [state for state in get_args(UpdateState) if state is not Finished]
    steps = {step_of(state(**dict.fromkeys(state.__struct_fields__))) for state in states}
    assert steps == set(Step)
