"""The stop of an enclave, stage by stage, each persisted before anything is done for it. Pure.

    finish --its guest is down, or had its time--> cut --reset, or given up--> end --> nothing left

While it finishes, the connections that are established are delivered. Only what is open after that
is cut, and only then its VM is ended: the client of a guest that ends with an answer half said
must see a reset and not an end.
"""

from __future__ import annotations

import msgspec

from agent.enclaves.port import VmPhase
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle, Stopping, StopStage
from agent.model.event import EventDraft
from agent.model.ids import EnclaveId
from agent.model.power_button import NOT_ASKED
from agent.model.update import Update
from agent.updates.planner.types import Action, ActionKind, Outcome, Plan, Situation, Write, act


def finish_action(s: Situation, row: Enclave) -> Action:
    """Have its guest power off. Whether it hears may be learned from that very press."""
    return Action(ActionKind.FINISH, enclave=row.id, grace_s=s.policy.stop_grace_s)


def reset_action(enclave: EnclaveId) -> Action:
    """Cut what is open to it."""
    return Action(ActionKind.RESET, enclave=enclave)


def stop_action(row: Enclave) -> Action:
    """Leave nothing of it, without asking its guest."""
    return Action(ActionKind.STOP, enclave=row.id)


def why_unasked(s: Situation, row: Enclave) -> str | None:
    """What an event says of a stop that does not ask the guest first."""
    return NOT_ASKED if row.revision in s.deaf else None


def begun(s: Situation, row: Enclave, *, served: bool = True, polite: bool = True) -> Enclave:
    """The row of an enclave that is to be stopped.

    Its guest is asked first if it is there to be asked and makes use of that; what never `served`
    has nothing to be cut.
    """
    asked = polite and s.grace_s(row) > 0 and s.is_up(row)
    stage = StopStage.CUT if served else StopStage.END
    return _at(s, row, StopStage.FINISH if asked else stage)


def advance(
    s: Situation, row: Enclave, update: Update | None = None, *, urgent: bool = False
) -> Plan | None:
    """The next step of one that is being stopped; None when nothing of it is left.

    `update`: into which the connections that are cut are counted; without one an event tells them.
    `urgent`: nobody serves meanwhile, so that a reset which fails does not hold up the stop.
    """
    match row.stopping.stage if row.stopping else None:
        case None:  # a row of an earlier version of the agent
            return _become(_at(s, row, StopStage.CUT))
        case StopStage.FINISH:
            asked = finish_action(s, row)
            if s.gone(row.id) or asked in s.outcomes:
                return _become(_at(s, row, StopStage.CUT))
            return act(asked)
        case StopStage.CUT:
            return _cut(s, row, update, urgent=urgent)
        case StopStage.END:
            absent = s.vm(row.id).phase is VmPhase.ABSENT
            return None if absent else act(stop_action(row))


def _cut(s: Situation, row: Enclave, update: Update | None, *, urgent: bool) -> Plan:
    """Reset; if that fails, again for a while. Beside an urgent stop: as long as that takes."""
    assert row.stopping is not None
    beside = urgent and s.vm(row.id).phase is not VmPhase.ABSENT
    reset = reset_action(row.id)
    outcome = cut(s, row.id, None if beside else row.stopping.since)
    if outcome is not None:
        return Plan(write=_have_cut(s, row, update, outcome))
    return act(reset, stop_action(row)) if beside and reset in s.outcomes else act(reset)


def _have_cut(s: Situation, row: Enclave, update: Update | None, outcome: Outcome) -> Write:
    events = cut_events(row, outcome)
    if update is not None and outcome.count:
        count = update.reset_connections + outcome.count
        update = msgspec.structs.replace(update, reset_connections=count)
    elif update is None and outcome.count:
        reason = "they were still open when its guest was asked no more"
        events = (_reset_event(row, f"{outcome.count} reset", reason), *events)
    ending = _at(s, row, StopStage.END)
    return Write(update=update, put_enclaves=(ending,), events=events)


def cut(s: Situation, enclave: EnclaveId, since: Instant | None) -> Outcome | None:
    """How the reset that is wanted since then ended; None while it is to be tried (again).

    A client that is not reset hangs on a guest that answers no more, so that a reset which fails
    is tried again. But nobody is kept down for it for ever: after a while it is given up, unless
    `since` is None.
    """
    outcome = s.outcomes.get(reset_action(enclave))
    if outcome is None or outcome.fault is None:
        return outcome
    over = since is not None and s.now.reached(since.plus(s.policy.reset_patience_s))
    return outcome if over else None


def cut_events(row: Enclave, outcome: Outcome | None) -> tuple[EventDraft, ...]:
    """What is to be told of a reset that was given up; nothing of one that is done."""
    if outcome is None or outcome.fault is None:
        return ()
    reason = f"what is open to it may hang: {outcome.fault.detail}"
    return (_reset_event(row, "given up", reason),)


def _reset_event(row: Enclave, to: str, reason: str) -> EventDraft:
    return EventDraft(
        kind="reset", deployment=row.deployment, enclave=row.id, to=to, reason=reason
    )


def _at(s: Situation, row: Enclave, stage: StopStage) -> Enclave:
    stopping = Stopping(stage=stage, since=s.now)
    return msgspec.structs.replace(row, lifecycle=Lifecycle.STOPPING, stopping=stopping)


def _become(row: Enclave) -> Plan:
    return Plan(write=Write(put_enclaves=(row,)))
