"""What a deployment needs besides its update: to be stopped, deleted, relaunched, routed. Pure.

While an update runs, this looks after the *active* enclave only, so that a death of the old
version while the new one boots is mended without the update noticing.
"""

from __future__ import annotations

import msgspec

from agent.enclaves.port import VmPhase
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.event import EventDraft
from agent.model.ids import EnclaveId
from agent.model.revision import Deployment, Fault, Wish
from agent.model.update import Decided, Releasing, Step, StoppingOld, Update
from agent.updates.planner import degraded, unhealthy_relaunch
from agent.updates.planner.attestation import (
    admitted,
    keep_verified,
    loss,
    rebinding,
    verification,
)
from agent.updates.planner.before_switch import vm_fault
from agent.updates.planner.certificates import (
    SPENT,
    boot_sample,
    certificate_domain,
    counted,
    left,
)
from agent.updates.planner.health_history import told_until
from agent.updates.planner.launch_blame import suspects
from agent.updates.planner.relaunch_boots import (
    died_in_boot,
    end_in_boot,
    give_up_boot,
    stays_in_boot,
)
from agent.updates.planner.relaunch_secrets import with_current_secrets
from agent.updates.planner.stop_stages import advance, begun, reset_action, why_unasked
from agent.updates.planner.transitions import (
    another_launch,
    enclave_event,
    in_words,
    routed,
    with_last_answer,
)
from agent.updates.planner.types import Action, ActionKind, Plan, Situation, Write, act, rest

SECRETS_MISSING = "secrets_missing"
GPU_QUARANTINED = "gpu_quarantined"


def keep_up(s: Situation) -> Plan:
    """The next step for everything that no update owns."""
    if s.update is None and s.deployment.wish is not Wish.RUN:
        return _wind_down(s)
    upkeep = _keep_active(s).also(_restart_old(s))
    if upkeep.write is None and not s.route_applied:
        return upkeep.also(act(s.apply_route))
    return upkeep


def _restart_old(s: Situation) -> Plan:
    """The old version of an update that failed after its stop, if its request wanted it back."""
    number = s.deployment.restart_old_revision
    if s.update is not None or number is None:
        return rest()
    return act(Action(ActionKind.RESTART_OLD, key=str(number)))


def _wind_down(s: Situation) -> Plan:
    """Refuse, stop everything, and for a delete leave nothing."""
    if s.deployment.route.enclave is not None:
        return _route(s, None, str(s.deployment.wish))
    if not s.enclaves and s.deployment.wish is Wish.DELETE:
        return _forget(s)
    if not s.route_applied:
        return act(s.apply_route)
    plan = rest()
    for row in s.enclaves.values():
        plan = plan.also(_stop(s, row))
    return plan


def _forget(s: Situation) -> Plan:
    """The listeners go too: from here on no route is applied any more."""
    forget = Action(ActionKind.FORGET_DEPLOYMENT)
    outcome = s.outcomes.get(forget)
    if outcome is None or outcome.fault:
        return act(forget)
    event = EventDraft(kind="deployment", deployment=s.deployment.name, to="deleted")
    return Plan(write=Write(delete_deployment=True, events=(event,)))


def _stop(s: Situation, row: Enclave) -> Plan:
    if row.lifecycle is Lifecycle.PLANNED:
        return _drop(s, row)
    if row.lifecycle is not Lifecycle.STOPPING:
        stopping = begun(s, row)
        event = enclave_event(stopping, row.lifecycle, why_unasked(s, row))
        return Plan(write=Write(put_enclaves=(stopping,), events=(event,)))
    return advance(s, row) or _drop(s, row)


def _drop(s: Situation, row: Enclave) -> Plan:
    event = EventDraft(
        kind="enclave",
        deployment=row.deployment,
        enclave=row.id,
        from_=str(row.lifecycle),
        to="gone",
    )
    deployment: Deployment | None = None
    if s.deployment.active_slot is row.slot:
        deployment = msgspec.structs.replace(s.deployment, active_slot=None)
    return Plan(write=Write(deployment=deployment, drop_enclaves=(row.id,), events=(event,)))


def active_enclave(s: Situation) -> Enclave | None:
    """The enclave in the active slot, unless the update owns it."""
    owned = _owned_by_update(s.update)
    for row in s.enclaves.values():
        if row.slot is s.deployment.active_slot and row.id not in owned:
            return row
    return None


def _owned_by_update(update: Update | None) -> set[EnclaveId]:
    """Enclaves whose life the update decides: the new one until the switch, the old one after.

    In a stop_then_start the old one too, from the moment that its stop is decided.
    """
    if update is None:
        return set()
    old: set[EnclaveId] = {update.from_enclave} if update.from_enclave else set()
    if update.decided is Decided.SWITCH:
        return old
    stopping_old = isinstance(update.state, StoppingOld | Releasing)
    return {update.enclave} | (old if stopping_old else set())


def _keep_active(s: Situation) -> Plan:
    row = active_enclave(s)
    if row is None or row.lifecycle is Lifecycle.STOPPING:
        return _stop_leftover(s, row)
    if row.lifecycle is Lifecycle.LAUNCHING:
        return _relaunch(s, row)
    if unhealthy_relaunch.is_ending(s, row):
        return unhealthy_relaunch.end(s, row)
    if s.gone(row.id):
        return _after_own_end(s, row)
    if s.vm(row.id).phase is VmPhase.STOPPING or row.launched_at is None:
        return act(Action(ActionKind.STOP, enclave=row.id))  # what ended is being cleaned
    return _serve(s, row)


def _stop_leftover(s: Situation, row: Enclave | None) -> Plan:
    """One that is being stopped for good (it crash-looped, say): finish that."""
    if row is None or s.update is not None:
        return rest()
    return _stop(s, row)


def _serve(s: Situation, row: Enclave) -> Plan:
    """It runs, and its evidence is judged again and again.

    If traffic was taken from it when it died, or with its evidence, it is given back once it is
    healthy and its evidence is good.
    """
    if s.deployment.route.enclave == row.id:
        if s.policy.drop_on_loss and (lost := loss(s, row)) is not None:
            return _route(s, None, lost.detail, degraded=lost)
        return degraded.note(s, row) or keep_verified(s, row).also(_relaunch_unhealthy(s, row))
    decided = s.update is not None and s.update.decided is not Decided.UNDECIDED
    if not decided and s.deployment.fault is None and stays_in_boot(s, row):
        return give_up_boot(s, row)
    if decided or s.deployment.fault is not None or not s.is_up(row):
        return rest()
    if not s.healthy(row.id):
        lacking = rebinding(s, row)  # which may be all that it lacks
        return degraded.note_health(s, row) or lacking.also(_relaunch_unhealthy(s, row))
    if admitted(s, row):
        return _route(s, row.id, "healthy again", proven_on=row.id)
    judged = s.verdicts.get(row.id)
    refused = judged is not None and judged.verdict.attested is False
    return keep_verified(s, row) if refused else verification(s, row)


def _relaunch_unhealthy(s: Situation, row: Enclave) -> Plan:
    due_at = unhealthy_relaunch.due_at(s, row)
    if due_at is None or not s.now.reached(due_at):
        return rest(due_at).also(rest(told_until(s, row)))
    return unhealthy_relaunch.decide(s, row)


def _route(
    s: Situation,
    enclave: EnclaveId | None,
    reason: str,
    *,
    proven_on: EnclaveId | None = None,
    degraded: Fault | None = None,
) -> Plan:
    deployment, event = routed(s.deployment, enclave, reason)
    deployment = msgspec.structs.replace(deployment, degraded=degraded)
    return Plan(write=Write(deployment=deployment, events=(event,), proven_on=proven_on))


def _after_own_end(s: Situation, row: Enclave) -> Plan:
    """It ended by itself: refuse and reset at once, clean what is left, relaunch after a while."""
    vm = s.vm(row.id)
    reason = vm.exit_detail or vm.exit_reason or _launch_fault(s, row) or "its VM is gone"
    if s.deployment.route.enclave == row.id:
        return _route(s, None, reason, degraded=vm_fault(s, row))
    if not s.route_applied:
        return act(s.apply_route)
    if vm.phase is VmPhase.EXITED and not row.boot_ended and died_in_boot(s, row):
        return end_in_boot(s, row)
    reset = reset_action(row.id)
    cut = s.outcomes.get(reset)
    if vm.phase is VmPhase.EXITED and cut is None:
        return act(reset)  # what is open to it has nobody left who would end it
    recent = _recent_relaunches(s)
    if len(recent) >= s.policy.relaunch_limit:
        return _give_up(s, row, _crash_loop(s, reason))
    if (spent := _certificates_spent(s, row, reason)) is not None:
        return _give_up(s, row, spent)
    backoff_s = s.policy.relaunch_backoff_s * (2 ** len(recent) - 1)
    not_before = recent[-1].plus(backoff_s) if recent else s.now
    if not s.now.reached(not_before):
        reached = frozenset({reset} & s.outcomes.keys())  # wanted still: so it is not done anew
        return Plan(actions=reached, wake_at=not_before)
    if vm.phase is not VmPhase.ABSENT:
        again = {reset} if cut is not None and cut.fault else set()  # while there is something
        return act(Action(ActionKind.STOP, enclave=row.id), *again)
    return Plan(write=_new_launch(s, row, recent, reason))


def _launch_fault(s: Situation, row: Enclave) -> str | None:
    """Why the launch that was to bring it up did not, if that was only now."""
    outcome = s.outcomes.get(Action(ActionKind.LAUNCH, enclave=row.id, key=row.launch_uuid))
    return outcome.fault.detail if outcome is not None and outcome.fault else None


def _recent_relaunches(s: Situation) -> list[Instant]:
    passed = [(at, s.now.since(at)) for at in s.deployment.relaunches]
    window = s.policy.relaunch_window_s
    return [at for at, ago in passed if ago is not None and ago < window]


def _new_launch(s: Situation, row: Enclave, recent: list[Instant], reason: str) -> Write:
    again = another_launch(s, row)
    counted = recent if s.rebooted(row.id) else [*recent, s.now]
    return Write(
        deployment=msgspec.structs.replace(s.deployment, relaunches=tuple(counted)),
        put_enclaves=(again,),
        events=(enclave_event(again, row.lifecycle, reason),),
    )


def _crash_loop(s: Situation, reason: str) -> Fault:
    window_min, times = s.policy.relaunch_window_s / 60, s.policy.relaunch_limit + 1
    return Fault(
        code="crash_loop", detail=f"ended {times} times within {window_min:.0f} min: {reason}"
    )


def _certificates_spent(s: Situation, row: Enclave, reason: str) -> Fault | None:
    """Why one that ended by itself is not launched again, although it has not crashed so often.

    A reboot of the host is nobody's loop: what it took is launched again all the same.
    """
    revision = s.revisions.get(row.revision)
    domain = certificate_domain(revision) if revision else None
    if domain is None or s.rebooted(row.id) or row.launched_at is None:
        return None
    boots = s.certificate_boots.get(domain, ())
    if left(boots, s.now) > 0:
        return None
    detail = f"{reason}; {counted(boots, domain, s.now)}: it is not launched again by itself"
    return Fault(code=SPENT, detail=f"{detail}, start it when you have mended the cause")


def _give_up(s: Situation, row: Enclave, fault: Fault) -> Plan:
    fault = msgspec.structs.replace(fault, step=_how_far(s, row))
    fault = with_last_answer(s, row.id, fault)
    stopping = begun(s, row)
    return Plan(
        write=Write(
            deployment=msgspec.structs.replace(s.deployment, fault=fault),
            put_enclaves=(stopping,),
            events=(enclave_event(stopping, row.lifecycle, in_words(fault)),),
            last_words=row.id,
        )
    )


def _how_far(s: Situation, row: Enclave) -> str:
    """The step in which its last launch ended; `run` if it had come up."""
    if row.launched_at is None and s.health_of(row.id) is None:
        return str(Step.LAUNCH)
    failed = row.launched_at is None or died_in_boot(s, row)
    return str(Step.BOOT) if failed else "run"


def _relaunch(s: Situation, row: Enclave) -> Plan:
    if s.is_up(row):
        running = msgspec.structs.replace(
            row,
            lifecycle=Lifecycle.RUNNING,
            process=s.vm(row.id).process,
            launched_at=s.now,
        )
        event = enclave_event(running, row.lifecycle)
        revision = s.revisions.get(row.revision)
        samples = boot_sample(revision, s.now) if revision else ()
        return Plan(write=Write(put_enclaves=(running,), samples=samples, events=(event,)))
    action = Action(ActionKind.LAUNCH, enclave=row.id, key=row.launch_uuid)
    outcome = s.outcomes.get(action)
    failed = outcome is not None and outcome.fault is not None
    if outcome and outcome.fault and outcome.fault.code == SECRETS_MISSING:
        regiven = with_current_secrets(s, row)
        # or it waits for whoever has them; tried again until they are there
        return Plan(write=regiven) if regiven else act(action)
    if outcome and outcome.fault and outcome.fault.code == GPU_QUARANTINED:
        if s.update is not None:
            return act(action)  # the update chose among the others: its end is waited for
        return Plan(
            write=Write(reassign_gpus=row.id)
        )  # that one stays out: perhaps there are others
    if s.vm(row.id).phase is VmPhase.EXITED or failed:
        # A launch that did not come up counts as one that ended: the same backoff, the same limit.
        ended = msgspec.structs.replace(row, lifecycle=Lifecycle.RUNNING)
        fault = outcome.fault if outcome and outcome.fault else vm_fault(s, row)
        event = enclave_event(ended, row.lifecycle, in_words(fault))
        blamed = suspects(fault, row)
        return Plan(write=Write(put_enclaves=(ended,), events=(event,), failed_on=blamed))
    return act(action)
