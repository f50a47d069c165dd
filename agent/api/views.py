"""From the engine's facts to what is shown: pure functions, no I/O, nothing secret in reach."""

from __future__ import annotations

import datetime as dt
from itertools import zip_longest

import msgspec

from agent.api.credentials import masked
from agent.api.progress import percent_of
from agent.model.clock import Instant
from agent.model.reasons import AskedProbes, Decision, DowntimeEstimate, Reason
from agent.model.resources import Amounts
from agent.model.revision import Fault, Revision
from agent.model.update import Update
from agent.probes.choice import asked_probes, unasked
from agent.probes.port import ListenerReach
from agent.probes.told_containers import guest_itself, told_containers
from agent.updates.secrets.standing import SecretState
from agent.updates.snapshot.aftermath import aftermath
from agent.updates.snapshot.snapshot import DeploymentFacts, EnclaveFacts
from agent.wire.answers import SecretView
from agent.wire.host_views import AmountsView
from agent.wire.views import (
    ContainerView,
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


def update_view(update: Update, facts: DeploymentFacts | None, now: Instant) -> UpdateView:
    """The facts add the progress, while they are about this very update, and what it left.

    `now` is the snapshot's moment, by whose wall clock all others are told.
    """
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
        created_at=update.created_at.shown(now),
        started_at=_shown(update.started_at, now),
        ready_at=_shown(update.ready_at, now),
        switched_at=_shown(update.switched_at, now),
        finished_at=_shown(update.finished_at, now),
        downtime_s=update.downtime_s,
        reset_connections=update.reset_connections,
        error=fault_view(update.fault),
        serves=left.serves if left else None,
        next_steps=[
            NextStepView(command=one.command, why=one.why)
            for one in (left.next_steps if left else ())
        ],
        progress=_progress(update, facts, now),
    )


def _progress(update: Update, facts: DeploymentFacts | None, now: Instant) -> ProgressView:
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
        deadline_at=_shown(facts.update_deadline, now),
        percent=percent_of(update, health),
        boot_estimate_s=_estimate_view(expected.boot) if expected.boot else None,
        downtime_estimate_s=_estimate_view(expected.downtime) if expected.downtime else None,
        ready_estimate_at=_shown(expected.ready_at, now),
        note=facts.boot_note,
    )


def _guest(facts: EnclaveFacts) -> str | None:
    """By its own word where it has one; its image's version is its release's to say."""
    revision, health = facts.revision, facts.health
    said = guest_itself(health.boot_stages) if health else None
    whose = said or (revision.image_source if revision else None)
    version = revision.image_version if revision else None
    return " ".join(filter(None, (whose, version))) or None


def _containers(facts: EnclaveFacts) -> list[ContainerView]:
    """In its guest's words; of one that says nothing yet, what its release has."""
    revision, health = facts.revision, facts.health
    told = told_containers(health.containers) if health else ()
    if told:
        return [
            ContainerView(name=one.name, image=one.image, state=one.state, played=one.played)
            for one in told
        ]
    names = revision.container_names if revision else ()
    images = revision.container_images if revision else ()
    return [
        ContainerView(name=name, image=image, state=None)
        for name, image in zip_longest(names, images[: len(names)], fillvalue="")
    ]


def enclave_view(facts: EnclaveFacts, now: Instant) -> EnclaveView:
    """`now` is the snapshot's moment, so that the same snapshot always reads the same."""
    row, health, verdict = facts.row, facts.health, facts.verdict
    containers = _containers(facts)
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
        started_at=_shown(row.launched_at, now),
        uptime_s=_uptime_s(row.launched_at, now),
        guest_metrics=health.metrics if health else None,
        debug=facts.debug,
        guest=_guest(facts),
        containers=containers,
        played=[one.name for one in containers if one.played],
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
        update=update_view(facts.update, facts, now) if facts.update else None,
        enclaves=[enclave_view(one, now) for one in facts.enclaves],
        degraded=fault_view(facts.degraded),
        error=fault_view(row.fault),
        probes=_probes(revision) if revision else None,
        refused=dict(facts.refused),
        reach=[_reach(one, now) for one in facts.outside],
        health_falls=row.health.falls,
        fell_at=[one.shown(now) for one in row.health.fell_at],
        warnings=_warnings(facts),
    )


def _reach(one: ListenerReach, now: Instant) -> ReachView:
    return ReachView(
        listen=str(one.listen),
        reached=one.reached,
        since=_shown(one.since, now),
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


def _shown(instant: Instant | None, now: Instant) -> dt.datetime | None:
    return None if instant is None else instant.shown(now)


def _uptime_s(launched_at: Instant | None, now: Instant) -> float | None:
    if launched_at is None:
        return None
    passed = now.since(launched_at)
    return None if passed is None else round(passed, 3)
