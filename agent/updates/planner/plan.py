"""The planner: recorded state and observation in, the next step out. Pure.

See `agent.model.update` for the diagram. Each handler below answers for one state. The rules that
hold for all of them: an order is given only after its intent was persisted (being in the state is
the intent); what is observed decides, so a handler asked again after a crash gives the same
answer; nothing here waits, `wake_at` says when to ask again if nothing happens before.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.enclaves.port import VmPhase
from agent.model.enclave import Enclave, Lifecycle
from agent.model.reasons import Strategy
from agent.model.update import (
    AwaitingAccept,
    AwaitingStop,
    Booting,
    Decided,
    Draining,
    Finished,
    Launching,
    Preparing,
    Releasing,
    Retiring,
    Reverting,
    Soaking,
    Step,
    StoppingOld,
    Switching,
    TearingDown,
    Update,
    Verifying,
)
from agent.updates.planner.after_switch import (
    drain,
    old_can_take_over,
    retire,
    send_back,
    soak,
    tear_down,
)
from agent.updates.planner.attestation import bind
from agent.updates.planner.before_switch import (
    await_accept,
    boot,
    fail_launch,
    verify,
    vm_fault,
)
from agent.updates.planner.boot_deadline import boot_deadline_s, booting, declared_by
from agent.updates.planner.certificates import boot_sample
from agent.updates.planner.reach import wait_to_know
from agent.updates.planner.stop_old import end_old
from agent.updates.planner.transitions import (
    become,
    cancel,
    complete,
    enclave_event,
    fail,
    move,
    note,
    revert,
    running_update,
    stop_old,
)
from agent.updates.planner.types import (
    Action,
    ActionKind,
    Outcome,
    Plan,
    Situation,
    Write,
    act,
    rest,
)
from agent.updates.planner.upkeep import SECRETS_MISSING, keep_up

_STOPPING_S = 5  # until it is looked whether the host still does
_TOUCHES_OLD = (StoppingOld, Releasing, Launching, Booting, Verifying)


def plan(s: Situation) -> Plan:
    """The next step for one deployment. While the host shuts down: as if we had ended before."""
    if s.host_stopping:
        return rest(s.now.plus(_STOPPING_S))
    if (bound := bind(s)) is not None:
        return bound
    if s.update is None:
        return keep_up(s)
    return _step(s).also(keep_up(s))


def _step(s: Situation) -> Plan:
    update = running_update(s)
    if update.cancel_requested and update.decided is Decided.UNDECIDED:
        stopped = update.strategy is Strategy.STOP_THEN_START
        return cancel(s, after_stop=stopped and isinstance(update.state, _TOUCHES_OLD))
    match update.state:
        case Preparing():
            return _prepare(s, update)
        case AwaitingStop():
            return _prepare_again(s, update) if update.accepted else rest()
        case StoppingOld():
            return _stop_old(s, update)
        case Releasing():
            return _release(s, update)
        case Launching():
            return _launch(s, update)
        case Booting() as state:
            return boot(s, state)
        case Verifying() as state:
            return verify(s, state)
        case AwaitingAccept():
            return await_accept(s)
        case Switching():
            return _switch(s, update)
        case Soaking() as state:
            return soak(s, update, state)
        case Draining() as state:
            return drain(s, update, state)
        case Retiring():
            return retire(s, update)
        case Reverting() as state:
            return send_back(s, state)
        case TearingDown() as state:
            return tear_down(s, update, state)
        case Finished():
            return rest()
    assert_never(update.state)


def _prepare(s: Situation, update: Update) -> Plan:
    action = Action(ActionKind.PREPARE, enclave=update.enclave)
    outcome = s.outcomes.get(action)
    if outcome is None or _waits_for_secrets(s, update, outcome):
        return act(action)
    if outcome.fault:
        return fail(s, Step.PREPARE, outcome.fault)
    if update.strategy is not Strategy.STOP_THEN_START:
        return _begin_launch(s, update)
    if update.staging and not update.accepted:
        return become(s, AwaitingStop())
    return stop_old(s)


def _prepare_again(s: Situation, update: Update) -> Plan:
    """What was prepared hours ago may be gone: now, unlike later, that costs no downtime."""
    action = Action(ActionKind.PREPARE, enclave=update.enclave, key="accepted")
    outcome = s.outcomes.get(action)
    if outcome is None or _waits_for_secrets(s, update, outcome):
        return act(action)
    return fail(s, Step.PREPARE, outcome.fault) if outcome.fault else stop_old(s)


def _waits_for_secrets(s: Situation, update: Update, outcome: Outcome) -> bool:
    """A reboot of the host took the secrets: whoever has them supplies them again."""
    missing = outcome.fault is not None and outcome.fault.code == SECRETS_MISSING
    return missing and s.now.since(update.created_at) is None


def _begin_launch(s: Situation, update: Update) -> Plan:
    row = s.enclaves[update.enclave]
    launching = msgspec.structs.replace(row, lifecycle=Lifecycle.LAUNCHING)
    after, event = move(s, Launching())
    return Plan(
        write=Write(
            update=after,
            put_enclaves=(launching,),
            events=(event, enclave_event(launching, row.lifecycle)),
        )
    )


def _stop_old(s: Situation, update: Update) -> Plan:
    doing = end_old(s, update)
    if doing is not None:
        return doing
    old = s.enclaves.get(update.from_enclave) if update.from_enclave else None
    if old is None:
        return become(s, Releasing())
    took_s = s.now.since(update.old_stopped_at) if update.old_stopped_at else None
    after, event = move(s, Releasing(), stop_s=took_s)
    return Plan(
        write=Write(
            update=after,
            inherit=(old.id, update.enclave),
            events=(event, enclave_event(old, old.lifecycle, "stopped")),
        )
    )


def _release(s: Situation, update: Update) -> Plan:
    row = s.enclaves[update.enclave]
    if not row.gpus:
        return _begin_launch(s, update)
    action = Action(ActionKind.REQUALIFY, enclave=row.id)
    outcome = s.outcomes.get(action)
    if outcome is None:
        return act(action)
    if outcome.fault:
        return fail(s, Step.RELEASE, outcome.fault)
    return _begin_launch(s, update)


def _launch(s: Situation, update: Update) -> Plan:
    row = s.enclaves[update.enclave]
    vm = s.vm(row.id)
    if s.is_up(row):
        return _launched(s, update, row)
    if vm.phase is VmPhase.EXITED:
        return fail_launch(s, Step.LAUNCH, vm_fault(s, row))
    action = Action(ActionKind.LAUNCH, enclave=row.id, key=row.launch_uuid)
    outcome = s.outcomes.get(action)
    if outcome and outcome.fault and not _waits_for_secrets(s, update, outcome):
        return fail_launch(s, Step.LAUNCH, outcome.fault)
    return act(action)


def _launched(s: Situation, update: Update, row: Enclave) -> Plan:
    running = msgspec.structs.replace(
        row,
        lifecycle=Lifecycle.RUNNING,
        process=s.vm(row.id).process,
        replaces=None,
        launched_at=s.now,
    )
    revision = s.revisions[update.revision]
    limit_s, declared = s.policy.boot_deadline_s, declared_by(revision, s.policy.pull_allowance_s)
    if limit_s is not None:
        state = booting(s.now, limit_s, final=True)
    else:
        computed_s = boot_deadline_s(revision.demand, s.boots, declared)
        state = booting(s.now, computed_s, final=False)
    after, event = move(s, state, started_at=update.started_at or s.now)
    return Plan(
        write=Write(
            update=after,
            put_enclaves=(running,),
            samples=boot_sample(revision, s.now),
            events=(event, enclave_event(running, row.lifecycle)),
        )
    )


def _switch(s: Situation, update: Update) -> Plan:
    if s.rebooted(update.enclave):  # decided is decided: it is launched again as what serves
        bluegreen = update.strategy is Strategy.BLUE_GREEN
        return become(s, Retiring()) if bluegreen else complete(s)
    if not s.route_applied:
        outcome = s.outcomes.get(s.apply_route)
        if outcome is None or outcome.fault is None:
            return act(s.apply_route)
        if update.strategy is Strategy.BLUE_GREEN:
            # With the old one gone, or not good enough, the new one is all there is: go on trying.
            return revert(s, outcome.fault) if old_can_take_over(s, update) else act(s.apply_route)
        # Nobody else serves: a data plane that refuses for a moment must not leave it down.
        trying_s = s.now.since(update.ready_at) if update.ready_at else None
        if trying_s is not None and trying_s < s.policy.switch_patience_s:
            return act(s.apply_route)
        return fail(s, Step.SWITCH, outcome.fault)
    if update.switched_at is None:
        down = s.now.since(update.old_stopped_at) if update.old_stopped_at else None
        return note(s, switched_at=s.now, downtime_s=down)
    match update.strategy:
        case Strategy.FRESH:
            return wait_to_know(s, update) or complete(s)
        case Strategy.STOP_THEN_START:
            until = update.switched_at.plus(s.policy.dwell_s)
            return become(s, Soaking(until=until, drain_until=until))
        case Strategy.BLUE_GREEN:
            return become(
                s,
                Soaking(
                    until=update.switched_at.plus(s.policy.soak_s),
                    drain_until=update.switched_at.plus(s.policy.drain_s),
                ),
            )
    assert_never(update.strategy)
