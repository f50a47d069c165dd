"""From the engine's facts to what is shown: pure functions, no I/O, nothing secret in reach."""

from __future__ import annotations

import datetime as dt

import msgspec

from agent.api.credentials import masked
from agent.api.progress import percent_of
from agent.model.clock import Instant
from agent.model.reasons import AskedProbes, Decision, DowntimeEstimate, Reason
from agent.model.resources import Amounts
from agent.model.revision import Fault, Revision
from agent.model.update import Update
from agent.probes.answers import played_containers
from agent.probes.choice import asked_probes, unasked
from agent.probes.port import ListenerReach
from agent.updates.secrets.standing import SecretState
from agent.updates.snapshot.aftermath import aftermath
from agent.updates.snapshot.snapshot import DeploymentFacts, EnclaveFacts
from agent.wire.answers import SecretView
from agent.wire.host_views import AmountsView
from agent.wire.views import (
    DecisionView,
    DeploymentView,
    EnclaveView,
    EstimateView,
    FaultView,
    NextStepView,
    ProbesView,
    ProbeView,
    ProgressView,
    PublishView,
    ReachView,
    ReasonView,
    RollbackView,
    UpdateView,
)


def reason_view(reason: Reason) -> ReasonView:
    unset = msgspec.UNSET
    return ReasonView(
        code=reason.code,
        detail=reason.detail,
        needed=unset if reason.needed is None else reason.needed,
        available=unset if reason.available is None else reason.available,
    )


def decision_view(decision: Decision) -> DecisionView:
    unset = msgspec.UNSET
    estimate, boots_left = decision.downtime_estimate_s, decision.certificate_boots_left
    return DecisionView(
        strategy=decision.strategy,
        gpus=list(decision.gpus),
        reasons=[reason_view(reason) for reason in decision.reasons],
        warnings=list(decision.warnings),
        retry_after_s=unset if decision.retry_after_s is None else decision.retry_after_s,
        downtime_estimate_s=unset if estimate is None else _estimate_view(estimate),
        certificate_boots_left=unset if boots_left is None else boots_left,
        probes=unset if decision.probes is None else probes_view(decision.probes),
    )


def _estimate_view(estimate: DowntimeEstimate) -> EstimateView:
    return EstimateView(p50=estimate.p50, p90=estimate.p90, samples=estimate.samples)


def fault_view(fault: Fault | None) -> FaultView | None:
    if fault is None:
        return None
    return FaultView(
        code=fault.code,
        detail=fault.detail,
        step=fault.step,
        probe=fault.probe,
        response=fault.response,
        console_tail=fault.console_tail,
    )


def secret_view(one: SecretState) -> SecretView:
    return SecretView(
        name=one.name,
        version=one.version,
        given=one.given,
        here=one.here,
        declared=one.declared,
        how=one.how,
    )


def amounts_view(amounts: Amounts) -> AmountsView:
    return AmountsView(
        gpus=amounts.gpus,
        memory_mib=amounts.memory_mib,
        vcpus=amounts.vcpus,
        tee_ids=amounts.tee_ids,
        addresses=amounts.addresses,
        disk_mib=amounts.disk_mib,
    )


def update_view(update: Update, facts: DeploymentFacts | None) -> UpdateView:
    """The facts add the progress, while they are about this very update, and what it left."""
    left = aftermath(update, facts) if facts else None
    return UpdateView(
        id=update.id,
        deployment=update.deployment,
        status=update.status,
        strategy=update.strategy,
        step=update.step,
        revision=update.revision,
        tag=update.tag,
        from_revision=update.from_revision,
        from_tag=update.from_tag,
        reasons=[reason_view(reason) for reason in update.reasons],
        warnings=list(update.warnings),
        staging=update.staging,
        created_at=update.created_at.wall,
        started_at=_wall(update.started_at),
        ready_at=_wall(update.ready_at),
        switched_at=_wall(update.switched_at),
        finished_at=_wall(update.finished_at),
        downtime_s=update.downtime_s,
        reset_connections=update.reset_connections,
        error=fault_view(update.fault),
        serves=left.serves if left else None,
        next_steps=[
            NextStepView(command=one.command, why=one.why)
            for one in (left.next_steps if left else ())
        ],
        progress=_progress(update, facts),
    )


def _progress(update: Update, facts: DeploymentFacts | None) -> ProgressView:
    if not facts or not facts.update or facts.update.id != update.id or not update.running:
        return ProgressView(
            boot_stages=None, probes=[], deadline_at=None, percent=percent_of(update, None)
        )
    mine = (one for one in facts.enclaves if one.row.id == update.enclave)
    enclave = next(mine, None)
    health = enclave.health if enclave else None
    expected = facts.expected
    return ProgressView(
        boot_stages=health.boot_stages if health else None,
        probes=[
            ProbeView(
                name=p.name,
                passing=p.passing,
                needed=p.needed,
                last=p.last,
                unknown=p.unknown or msgspec.UNSET,
            )
            for p in (health.probes if health else ())
        ],
        deadline_at=_wall(facts.update_deadline),
        percent=percent_of(update, health),
        boot_estimate_s=_estimate_view(expected.boot) if expected.boot else None,
        downtime_estimate_s=_estimate_view(expected.downtime) if expected.downtime else None,
        ready_estimate_at=_wall(expected.ready_at),
        note=facts.boot_note,
    )


def enclave_view(facts: EnclaveFacts, now: Instant) -> EnclaveView:
    """`now` is the snapshot's moment, so that the same snapshot always reads the same."""
    row, health, verdict = facts.row, facts.health, facts.verdict
    return EnclaveView(
        id=row.id,
        deployment=row.deployment,
        slot=row.slot,
        revision=row.revision,
        state=facts.state,
        teardown=facts.vm.teardown,
        gpus=list(row.gpus),
        memory_mib=row.memory_mib,
        vcpus=row.vcpus,
        address=row.address,
        pid=facts.vm.process.pid if facts.vm.process else None,
        unit=facts.vm.unit,
        healthy=facts.healthy,
        attested=verdict.attested if verdict else None,
        simulated=_is_simulated(facts),
        connections=facts.connections,
        started_at=_wall(row.launched_at),
        uptime_s=_uptime_s(row.launched_at, now),
        guest_metrics=health.metrics if health else None,
        debug=facts.debug,
        played=played_containers(health.containers) if health else [],
    )


def deployment_view(facts: DeploymentFacts, now: Instant) -> DeploymentView:
    row, revision = facts.row, facts.revision
    return DeploymentView(
        name=row.name,
        status=facts.status,
        tag=revision.tag if revision else None,
        revision=revision.number if revision else None,
        active_slot=row.active_slot,
        listen=str(revision.listen) if revision else None,
        publish=_publish(revision),
        domain=revision.domain if revision else None,
        guest_domain=revision.own_guest_domain if revision else None,
        variables=masked(revision.variables) if revision else {},
        secrets=sorted(revision.secrets) if revision else [],
        stale_secrets=list(facts.stale_secrets),
        debug=revision.debug if revision else False,
        simulated=any(_is_simulated(one) for one in facts.enclaves),
        rollback=[
            RollbackView(
                revision=one.revision,
                tag=one.tag,
                feasibility=one.feasibility,
                reason=one.reason,
                default=one.default,
            )
            for one in facts.rollback
        ],
        next_update=decision_view(facts.next_update),
        update=update_view(facts.update, facts) if facts.update else None,
        enclaves=[enclave_view(one, now) for one in facts.enclaves],
        degraded=fault_view(facts.degraded),
        error=fault_view(row.fault),
        probes=_probes(revision) if revision else None,
        refused=dict(facts.refused),
        reach=[_reach(one) for one in facts.outside],
        health_falls=row.health.falls,
        fell_at=[one.wall for one in row.health.fell_at],
        warnings=_warnings(facts),
    )


def _reach(one: ListenerReach) -> ReachView:
    return ReachView(
        listen=str(one.listen),
        reached=one.reached,
        since=_wall(one.since),
        problem=one.problem,
        asked_from="outside" if one.by_outside else "host",
    )


def _probes(revision: Revision) -> ProbesView:
    return probes_view(asked_probes(revision))


def probes_view(asked: AskedProbes) -> ProbesView:
    return ProbesView(
        path=asked.path,
        host=asked.host,
        asked_path=asked.asked_path,
        asked_host=asked.asked_host,
        healthy_when=asked.healthy_when,
    )


def _warnings(facts: DeploymentFacts) -> list[str]:
    """Of how it is probed: what cannot be asked, and what was asked in vain."""
    told = unasked(facts.revision) if facts.revision else None
    probes = (p for one in facts.enclaves for p in (one.health.probes if one.health else ()))
    vain = (f"{probe.name} tells nothing: {probe.last}" for probe in probes if probe.unknown)
    return list(dict.fromkeys([*([told] if told else []), *vain]))


def _is_simulated(facts: EnclaveFacts) -> bool:
    """By what it was started as, whatever the host is configured for now."""
    return facts.vm.simulated or bool(facts.verdict and facts.verdict.simulated)


def _publish(revision: Revision | None) -> list[PublishView]:
    extra = revision.publish if revision else ()
    return [PublishView(listen=str(p.listen), guest_port=p.guest_port) for p in extra]


def _wall(instant: Instant | None) -> dt.datetime | None:
    return None if instant is None else instant.wall


def _uptime_s(launched_at: Instant | None, now: Instant) -> float | None:
    if launched_at is None:
        return None
    passed = now.since(launched_at)
    return None if passed is None else round(passed, 3)
