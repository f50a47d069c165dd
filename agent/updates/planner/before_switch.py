"""Boot, verify and the wait for accept: when an enclave may be called Ready. Pure."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from agent.enclaves.port import VmPhase
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.ids import Bdf, EnclaveId
from agent.model.lease import Sample
from agent.model.reasons import Strategy
from agent.model.revision import Fault
from agent.model.update import AwaitingAccept, Booting, Step, Update, Verifying
from agent.probes.port import HealthView
from agent.probes.stages import CONTAINERS
from agent.updates.planner.attestation import (
    REFUSED,
    admitted,
    keep_verified,
    loss,
    rebinding,
    refusals,
    verification,
)
from agent.updates.planner.boot_deadline import BOOTS, deadline_of, shape_of
from agent.updates.planner.boot_words import boot_timeout, note_changes_at
from agent.updates.planner.launch_blame import suspect, suspects
from agent.updates.planner.shut_door import ANSWERS, shut_fault, shut_over_gpus, shut_until
from agent.updates.planner.transitions import (
    become,
    fail,
    launch_anew,
    move,
    note,
    running_update,
    switch,
)
from agent.updates.planner.types import Plan, Situation, Write, rest


def vm_fault(s: Situation, row: Enclave) -> Fault:
    """Why a VM that should run does not."""
    vm = s.vm(row.id)
    if vm.phase is VmPhase.ABSENT:
        return Fault(code="vm_lost", detail="its VM is gone without a trace")
    return Fault(
        code=(vm.exit_reason or "vm_exited").replace("-", "_"),
        detail=vm.exit_detail or "its VM ended by itself",
    )


def boot(s: Situation, state: Booting) -> Plan:
    """Until every boot stage is done, or one failed, or the time is up."""
    update = running_update(s)
    row = s.enclaves[update.enclave]
    if s.rebooted(row.id):
        return launch_anew(s)
    if s.gone(row.id):
        return fail_launch(s, Step.BOOT, vm_fault(s, row))
    health = s.health_of(row.id)
    if health and health.boot_failed:
        return fail(s, Step.BOOT, Fault(code="boot_stage_failed", detail=health.boot_failed))
    if health and health.boot_complete:
        return _booted(s, update, row, state)
    if (marked := _marked(s, row, state)) is not None:
        return note(s, state=marked)
    if (shut := shut_fault(s, row, state)) is not None:
        devices = (*row.gpus, *row.switches) if shut_over_gpus(health, state) else ()
        return _fail_on(s, Step.BOOT, shut, devices)
    deadline = deadline_of(state, health)
    if s.now.reached(deadline):
        return fail_launch(s, Step.BOOT, boot_timeout(s, row))
    return rest(deadline).also(rest(shut_until(s, row, state))).also(rest(note_changes_at(s, row)))


def _marked(s: Situation, row: Enclave, state: Booting) -> Booting | None:
    """The state with what is to be known after a crash of the agent; None: there is no news."""
    health = s.health_of(row.id)
    if health is None or not health.answered:
        return None
    after_s = s.now.since(row.launched_at) if row.launched_at else None
    marked = msgspec.structs.replace(
        state,
        answered_after_s=after_s if state.answered_after_s is None else state.answered_after_s,
        gpus_attested=state.gpus_attested or health.gpus_attested,
    )
    begins = health.stage == CONTAINERS and state.reached != CONTAINERS
    if marked == state and not begins:
        return None
    return msgspec.structs.replace(marked, reached=health.stage)


def fail_launch(s: Situation, step: Step, fault: Fault) -> Plan:
    """Fail, and hold it against those GPUs of the new enclave whose doing it may be."""
    if not suspect(fault):
        return fail(s, step, fault)
    return _fail_on(s, step, fault, suspects(fault, s.enclaves[running_update(s).enclave]))


def _fail_on(s: Situation, step: Step, fault: Fault, devices: tuple[Bdf, ...]) -> Plan:
    """Fail, and hold it against these, unless the guest has attested its GPUs."""
    plan = fail(s, step, fault)
    if gpus_attested(s, running_update(s).enclave):
        return plan
    assert plan.write is not None
    return Plan(write=replace(plan.write, failed_on=devices))


def gpus_attested(s: Situation, enclave: EnclaveId) -> bool:
    """Whether this launch of the guest found its GPUs to be good: what fails then is another."""
    health, update = s.health_of(enclave), s.update
    recorded = update.state if update is not None and update.enclave == enclave else None
    if isinstance(recorded, Booting) and recorded.gpus_attested:
        return True
    return health is not None and health.gpus_attested


def _booted(s: Situation, update: Update, row: Enclave, state: Booting) -> Plan:
    """Its boot is over, and how long it took is remembered for those of its size."""
    after, event = move(s, _verifying(s, update))
    took_s = s.now.since(row.launched_at) if row.launched_at else None
    shape = shape_of(s.revisions[update.revision].demand)
    times = {BOOTS: took_s, ANSWERS: state.answered_after_s}
    samples = tuple(
        Sample(kind=kind, key=shape, value_s=value) for kind, value in times.items() if value
    )
    return Plan(
        write=Write(update=after, events=(event,), samples=samples, proven_on=update.enclave)
    )


def _verifying(s: Situation, update: Update) -> Verifying:
    start_period = s.revisions[update.revision].start_period_s or s.policy.default_start_period_s
    grace = s.now.plus(start_period + s.policy.failing_for_s)
    return Verifying(
        grace_until=grace, deadline=grace.plus(s.policy.dwell_s + s.policy.probe_slack_s)
    )


def verify(s: Situation, state: Verifying) -> Plan:
    """Healthy on every probe, attested, and both held for the dwell: then it is Ready."""
    update = running_update(s)
    row = s.enclaves[update.enclave]
    if s.rebooted(row.id):
        return launch_anew(s)
    if s.gone(row.id):
        return fail(s, Step.VERIFY, vm_fault(s, row))
    health = s.health_of(row.id)
    since = health.healthy_since if health and health.healthy else None
    if since is None:
        return _not_healthy(s, state, row)
    if not admitted(s, row):
        return _not_attested(s, state, row)
    dwell_s = 0 if update.strategy is Strategy.STOP_THEN_START else s.policy.dwell_s
    ready_at = _together(s, row, since).plus(dwell_s)
    if not s.now.reached(ready_at):
        return rest(ready_at).also(keep_verified(s, row))
    if update.staging and not update.accepted and update.strategy is Strategy.BLUE_GREEN:
        return become(s, AwaitingAccept(), ready_at=s.now)
    return switch(s)


def _together(s: Situation, row: Enclave, healthy_since: Instant) -> Instant:
    """Since when all of it is good at once: the probes, and the evidence over the very key."""
    judged = s.verdicts.get(row.id)
    assert judged is not None
    return max(healthy_since, judged.since or judged.at, key=lambda at: at.boottime_s)


def _not_healthy(s: Situation, state: Verifying, row: Enclave) -> Plan:
    health = s.health_of(row.id)
    past_grace = s.now.reached(state.grace_until)
    if (shut := shut_fault(s, row, None)) is not None:
        return fail(s, Step.VERIFY, shut)
    if health and health.healthy is False and past_grace:
        fault = health.fault or Fault(code="unhealthy", detail="its probes fail")
        return fail(s, Step.VERIFY, fault)
    if s.now.reached(state.deadline):
        return fail(s, Step.VERIFY, _not_in_time(health))
    waiting = rest(_first(state.grace_until, state.deadline, s.now))
    return waiting.also(rest(shut_until(s, row, None))).also(rebinding(s, row))


def _not_in_time(health: HealthView | None) -> Fault:
    detail = "its probes did not all pass in time"
    last = health.fault if health else None
    return Fault(
        code="not_healthy_in_time",
        detail=f"{detail}: {last.detail}" if last else detail,
        probe=last.probe if last else None,
        response=last.response if last else None,
    )


def _first(grace: Instant, deadline: Instant, now: Instant) -> Instant:
    return deadline if now.reached(grace) else grace


def _not_attested(s: Situation, state: Verifying, row: Enclave) -> Plan:
    """Healthy, and the evidence is not there yet, or is not good."""
    judged = s.verdicts.get(row.id)
    if judged is not None and judged.verdict.attested is False:
        fault = Fault(code=REFUSED, detail=refusals(judged.verdict))
        return fail(s, Step.VERIFY, fault)
    if s.now.reached(state.deadline):
        why = f": {refusals(judged.verdict)}" if judged is not None else ""
        detail = f"there was no evidence in time{why}"
        return fail(s, Step.VERIFY, Fault(code="not_attested_in_time", detail=detail))
    return verification(s, row).also(rest(state.deadline))


def await_accept(s: Situation) -> Plan:
    """Staged and Ready: accept switches; a sickness while waiting fails."""
    update = running_update(s)
    row = s.enclaves[update.enclave]
    if s.rebooted(row.id):
        return launch_anew(s)
    if s.gone(row.id):
        return fail(s, Step.ACCEPT, vm_fault(s, row))
    health = s.health_of(row.id)
    if health and health.healthy is False:
        fault = health.fault or Fault(code="unhealthy", detail="its probes fail")
        return fail(s, Step.ACCEPT, fault)
    if (lost := loss(s, row)) is not None:
        return fail(s, Step.ACCEPT, lost)
    good = health is not None and health.healthy is True and admitted(s, row)
    return switch(s) if update.accepted and good else keep_verified(s, row)
