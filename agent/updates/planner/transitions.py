"""How an update and its deployment change together. Pure; every change carries its events."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from agent.model.enclave import Enclave, Lifecycle
from agent.model.event import EventDraft
from agent.model.ids import EnclaveId
from agent.model.reasons import Strategy
from agent.model.revision import Deployment, Fault, Route
from agent.model.update import (
    Decided,
    Finished,
    Launching,
    Reverting,
    Step,
    StoppingOld,
    Switching,
    TearingDown,
    Update,
    UpdateState,
)
from agent.updates.planner.downtimes import measured
from agent.updates.planner.reach import with_warnings
from agent.updates.planner.types import Plan, Situation, Write
from agent.updates.planner.what_serves import what_serves

REBOOTED = "host_rebooted"
CANCELLED_AFTER_STOP = "cancelled_after_stop"

_LAUNCHES = uuid.UUID("7d1f6b2e-3f0e-5f61-9a39-4b7f2f1d6c55")


def running_update(s: Situation) -> Update:
    """The update of a situation that has one."""
    assert s.update is not None
    return s.update


def transition_event(before: Update, after: Update, reason: str | None = None) -> EventDraft:
    """One event a transition: which step to which, and why."""
    return EventDraft(
        kind="update",
        deployment=after.deployment,
        enclave=after.enclave,
        update=after.id,
        from_=f"{before.status}/{before.step}",
        to=f"{after.status}/{after.step}",
        reason=reason,
    )


def move(
    s: Situation, state: UpdateState, *, reason: str | None = None, **fields: Any
) -> tuple[Update, EventDraft]:
    """The update in another state, with the event that tells it."""
    before = running_update(s)
    after = msgspec.structs.replace(before, state=state, **fields)
    return after, transition_event(before, after, reason)


def become(s: Situation, state: UpdateState, *, reason: str | None = None, **fields: Any) -> Plan:
    """Persist that the update moved, and nothing else."""
    update, event = move(s, state, reason=reason, **fields)
    return Plan(write=Write(update=update, events=(event,)))


def note(s: Situation, **fields: Any) -> Plan:
    """Persist a fact of the update that is no transition."""
    return Plan(write=Write(update=msgspec.structs.replace(running_update(s), **fields)))


def routed(
    deployment: Deployment, enclave: EnclaveId | None, reason: str
) -> tuple[Deployment, EventDraft]:
    """The deployment with a new routing decision; None refuses."""
    route = Route(generation=deployment.route.generation + 1, enclave=enclave)
    event = EventDraft(
        kind="route",
        deployment=deployment.name,
        enclave=enclave,
        from_=deployment.route.enclave or "refusing",
        to=enclave or "refusing",
        reason=reason,
    )
    return msgspec.structs.replace(deployment, route=route), event


def another_launch(s: Situation, row: Enclave) -> Enclave:
    """The row of an enclave that is to be launched once more."""
    moment = f"{row.id}/{row.launch_uuid}/{s.now.boot_id}/{s.now.boottime_s}"
    return msgspec.structs.replace(
        row,
        lifecycle=Lifecycle.LAUNCHING,
        launch_uuid=str(uuid.uuid5(_LAUNCHES, moment)),
        process=None,
        spki_sha256=None,
        launched_at=None,
        boot_ended=False,
        stopping=None,
    )


def launch_anew(s: Situation) -> Plan:
    """The host was rebooted under the new version: its boot begins anew, and it is not blamed."""
    row = s.enclaves[running_update(s).enclave]
    again = another_launch(s, row)
    update, event = move(s, Launching(), reason=REBOOTED, ready_at=None)
    changed = enclave_event(again, row.lifecycle, REBOOTED)
    return Plan(write=Write(update=update, put_enclaves=(again,), events=(event, changed)))


def stop_old(s: Situation) -> Plan:
    """stop_then_start goes past the point where nothing of the old version was touched."""
    update, event = move(s, StoppingOld())
    deployment, route_event = routed(s.deployment, None, "stop_then_start")
    return Plan(write=Write(update=update, deployment=deployment, events=(event, route_event)))


def switch(s: Situation) -> Plan:
    """The one durable decision of a switch: update, slot and route together."""
    before = running_update(s)
    update, event = move(s, Switching(), decided=Decided.SWITCH, ready_at=before.ready_at or s.now)
    deployment, route_event = routed(s.deployment, before.enclave, "switch")
    deployment = msgspec.structs.replace(
        deployment,
        active_slot=before.slot,
        active_revision=before.revision,
        relaunches=(),  # those before say nothing of this version
        fault=None,
        degraded=None,
    )
    return Plan(write=Write(update=update, deployment=deployment, events=(event, route_event)))


def with_last_answer(s: Situation, enclave: EnclaveId, fault: Fault) -> Fault:
    """With what the failing probe of this launch heard last, unless that is what it tells."""
    health = s.health_of(enclave)
    last = health.fault if health else None
    if last is None or fault.probe is not None or last.detail in fault.detail:
        return fault
    detail = f"{fault.detail}; last probe response: {last.detail}"
    return msgspec.structs.replace(fault, detail=detail, probe=last.probe, response=last.response)


def in_words(fault: Fault) -> str:
    """For an event: the code, and the words of what failed; a probe's by its name."""
    by = f"{fault.probe}: " if fault.probe and fault.response == fault.detail else ""
    return f"{fault.code}: {by}{fault.detail}" if fault.detail else fault.code


def fail(s: Situation, step: Step, fault: Fault) -> Plan:
    """The new version did not make it: destroy it, and only it."""
    fault = with_last_answer(s, running_update(s).enclave, fault)
    fault = msgspec.structs.replace(fault, step=fault.step or str(step))
    return _tear_down(s, step, Decided.FAIL, fault)


def cancel(s: Situation, *, after_stop: bool) -> Plan:
    """As the user asked. After the stop of the old version a cancel is a failure."""
    step = running_update(s).step
    if not after_stop:
        return _tear_down(s, step, Decided.CANCEL, None)
    fault = Fault(
        code=CANCELLED_AFTER_STOP,
        detail="cancelled after the old version had been stopped; retry or redeploy",
        step=str(step),
    )
    return _tear_down(s, step, Decided.FAIL, fault)


def _tear_down(s: Situation, step: Step, decided: Decided, fault: Fault | None) -> Plan:
    before = running_update(s)
    update, event = move(
        s,
        TearingDown(step=step, fault=fault, since=s.now),
        reason=in_words(fault) if fault else str(decided),
        decided=decided,
        fault=fault,
    )
    if s.deployment.route.enclave != before.enclave:
        return Plan(write=Write(update=update, events=(event,)))
    deployment, route_event = routed(s.deployment, None, "the new version failed")
    return Plan(write=Write(update=update, deployment=deployment, events=(event, route_event)))


def revert(s: Situation, fault: Fault) -> Plan:
    """The new version failed after the switch: the old one, still warm, takes the traffic back."""
    before = running_update(s)
    old = s.enclaves[before.from_enclave] if before.from_enclave else None
    assert old is not None
    fault = msgspec.structs.replace(fault, step=str(Step.REVERT))
    update, event = move(
        s, Reverting(fault=fault), reason=in_words(fault), decided=Decided.FAIL, fault=fault
    )
    deployment, route_event = routed(s.deployment, old.id, "revert")
    deployment = msgspec.structs.replace(
        deployment, active_slot=old.slot, active_revision=old.revision, relaunches=()
    )
    return Plan(write=Write(update=update, deployment=deployment, events=(event, route_event)))


def complete(s: Situation, *, drop: EnclaveId | None = None) -> Plan:
    """Traffic is on the new version and the old one is gone."""
    before = running_update(s)
    update, event = move(
        s, Finished(step=before.step), decided=Decided.COMPLETE, finished_at=s.now
    )
    update = with_warnings(s, update)
    stopped = s.revisions.get(before.from_revision) if before.from_revision else None
    samples = measured(before, stopped.image_version if stopped else None)
    return Plan(
        write=Write(
            update=update,
            drop_enclaves=(drop,) if drop else (),
            samples=samples,
            events=(event,),
        )
    )


def end(s: Situation, state: TearingDown, *, stopped: EnclaveId | None = None) -> Plan:
    """The new enclave is gone, and the old one if it was `stopped`: it ends as it was decided.

    The deployment is failed with it only where nothing of it is left to serve.
    """
    before = running_update(s)
    step = state.step
    leaving = [row for row in s.enclaves.values() if row.id in (before.enclave, stopped)]
    others = [row for row in s.enclaves.values() if row not in leaving]
    deployment: Deployment | None = None
    if not others:
        fault = before.fault or s.deployment.fault  # a cancel leaves it as failed as it was
        deployment = msgspec.structs.replace(s.deployment, active_slot=None, fault=fault)
    wants_old_back = before.strategy is Strategy.STOP_THEN_START and not others
    back = wants_old_back and before.restart_old_on_failure and before.cancel_requested is False
    told = what_serves(s, before, comes_back=back)
    update, event = move(s, Finished(step=step), reason=told, finished_at=s.now)
    return Plan(
        write=Write(
            update=update,
            deployment=deployment,
            drop_enclaves=tuple(row.id for row in leaving),
            events=(
                event,
                *(enclave_event(r, r.lifecycle, "stopped") for r in leaving if r.id == stopped),
            ),
            restart_old=before.from_revision if back else None,
        )
    )


def enclave_event(row: Enclave, before: Lifecycle, reason: str | None = None) -> EventDraft:
    """One event a change of an enclave's lifecycle."""
    return EventDraft(
        kind="enclave",
        deployment=row.deployment,
        enclave=row.id,
        from_=str(before),
        to=str(row.lifecycle),
        reason=reason,
    )
