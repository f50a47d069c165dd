"""The end of an enclave that served: what is open to it is cut, and its VM stopped. Pure."""

from __future__ import annotations

import msgspec

from agent.enclaves.port import VmPhase
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.event import EventDraft
from agent.model.ids import EnclaveId
from agent.model.power_button import NOT_ASKED
from agent.model.update import StoppingOld, TearingDown, Update
from agent.updates.planner.transitions import enclave_event, note
from agent.updates.planner.types import Action, ActionKind, Outcome, Plan, Situation, Write, act


def reset_action(enclave: EnclaveId) -> Action:
    """Cut what is open to it."""
    return Action(ActionKind.RESET, enclave=enclave)


def stop_action(s: Situation, row: Enclave) -> Action:
    """Stop with the grace that a version which served deserves, if its image makes use of it."""
    return Action(ActionKind.STOP, enclave=row.id, grace_s=s.grace_s(row))


def why_unasked(s: Situation, row: Enclave) -> str | None:
    """What an event says of a stop that does not ask the guest first."""
    return NOT_ASKED if row.revision in s.deaf else None


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
    return (
        EventDraft(
            kind="reset",
            deployment=row.deployment,
            enclave=row.id,
            to="given up",
            reason=f"what is open to it may hang: {outcome.fault.detail}",
        ),
    )


def mark_stopping(
    s: Situation, update: Update, row: Enclave, outcome: Outcome | None = None
) -> Plan:
    """Persist that it is to be stopped, with the connections that were cut for it."""
    stopping = msgspec.structs.replace(row, lifecycle=Lifecycle.STOPPING)
    cut_now = outcome.count if outcome else 0
    counted = msgspec.structs.replace(update, reset_connections=update.reset_connections + cut_now)
    return Plan(
        write=Write(
            update=counted,
            put_enclaves=(stopping,),
            events=(
                enclave_event(stopping, row.lifecycle, why_unasked(s, row)),
                *cut_events(row, outcome),
            ),
        )
    )


def end_old(s: Situation, update: Update, state: StoppingOld | TearingDown) -> Plan | None:
    """The stop of a stop_then_start, once decided, is finished; None when it is.

    Refuse first; then reset what is open, and stop beside it. Each of it safe to do again.
    """
    if not s.route_applied:
        return act(s.apply_route)
    if update.old_stopped_at is None:
        return note(s, old_stopped_at=s.now)
    old = s.enclaves.get(update.from_enclave) if update.from_enclave else None
    if old is None:
        return None
    if old.lifecycle is not Lifecycle.STOPPING:
        unasked = old.revision in s.deaf  # now: its own stop may be what teaches it
        return mark_stopping(s, msgspec.structs.replace(update, stopped_unasked=unasked), old)
    lives = s.vm(old.id).phase is not VmPhase.ABSENT
    since = None if lives else update.old_stopped_at
    if not state.reset and (outcome := cut(s, old.id, since)) is not None:
        return _note_cut(s, update, state, old, outcome)
    doing = set() if state.reset else {reset_action(old.id)}
    if lives:
        doing.add(stop_action(s, old))
    return act(*doing) if doing else None


def _note_cut(
    s: Situation,
    update: Update,
    state: StoppingOld | TearingDown,
    old: Enclave,
    outcome: Outcome,
) -> Plan:
    after = msgspec.structs.replace(
        update,
        state=msgspec.structs.replace(state, reset=True),
        reset_connections=update.reset_connections + outcome.count,
    )
    return Plan(write=Write(update=after, events=cut_events(old, outcome)))
