"""From rows and views to the published facts. Pure."""

from __future__ import annotations

from agent.enclaves.port import VmPhase, VmView
from agent.model.clock import Instant
from agent.model.enclave import Enclave, EnclaveState, Lifecycle
from agent.model.reasons import Decision, Strategy
from agent.model.revision import DeploymentStatus, Wish
from agent.model.update import (
    AwaitingStop,
    Booting,
    Decided,
    Draining,
    Launching,
    Preparing,
    Releasing,
    Soaking,
    Update,
    Verifying,
)
from agent.probes.port import HealthView
from agent.updates.planner.attestation import loss
from agent.updates.planner.boot_deadline import deadline_of
from agent.updates.planner.boot_words import boot_note
from agent.updates.planner.degraded import why
from agent.updates.planner.reach import reach_fault, reached, stays_unreached
from agent.updates.planner.types import Situation
from agent.updates.snapshot.eta import expected
from agent.updates.snapshot.rows import Observation, Rows, situation
from agent.updates.snapshot.snapshot import DeploymentFacts, EnclaveFacts, RollbackOption


def deployment_facts(
    rows: Rows,
    seen: Observation,
    *,
    next_update: Decision,
    rollback: tuple[RollbackOption, ...],
    missing_secrets: tuple[str, ...],
) -> DeploymentFacts:
    """Everything to read about one deployment."""
    s = situation(rows, seen)
    revision = rows.revision(rows.deployment.active_revision) or next(iter(rows.revisions), None)
    update = rows.update or rows.latest_update
    status = deployment_status(s, missing_secrets)
    active = [row for row in rows.enclaves if row.slot is rows.deployment.active_slot]
    return DeploymentFacts(
        row=rows.deployment,
        status=status,
        degraded=why(s, active[0]) if status is DeploymentStatus.DEGRADED else None,
        revision=revision,
        update=update,
        update_deadline=update_deadline(s, update),
        boot_note=_boot_note(s),
        expected=expected(rows, s),
        enclaves=tuple(enclave_facts(s, row) for row in rows.enclaves),
        refused=seen.refused,
        outside=s.outside.listeners if s.outside is not None else (),
        stale_secrets=stale_secrets(rows),
        rollback=rollback,
        next_update=next_update,
    )


def stale_secrets(rows: Rows) -> tuple[str, ...]:
    """Names whose current version is not the one that the running revision was given."""
    revision = rows.revision(rows.deployment.active_revision)
    if revision is None or rows.deployment.active_slot is None:
        return ()
    current = {name: version for name, (version, _) in rows.secret_versions.items()}
    names = sorted(set(current) | set(revision.secrets))
    return tuple(name for name in names if current.get(name) != revision.secrets.get(name))


def deployment_status(s: Situation, missing_secrets: tuple[str, ...]) -> DeploymentStatus:
    """The one word for a deployment."""
    if s.deployment.wish is Wish.DELETE:
        return DeploymentStatus.DELETING
    if s.update is not None:
        if missing_secrets and waits_for_secrets(s.update, s.now):
            return DeploymentStatus.WAITING_FOR_SECRETS
        fresh = s.update.strategy is Strategy.FRESH
        return DeploymentStatus.DEPLOYING if fresh else DeploymentStatus.UPDATING
    if s.deployment.wish is Wish.STOP:
        return DeploymentStatus.STOPPED
    active = [row for row in s.enclaves.values() if row.slot is s.deployment.active_slot]
    if s.deployment.fault is not None:
        return DeploymentStatus.FAILED
    if not active:
        return DeploymentStatus.STOPPED
    if missing_secrets and not s.is_up(active[0]):
        return DeploymentStatus.WAITING_FOR_SECRETS
    serving = s.deployment.route.enclave == active[0].id and s.route_applied
    trusted = loss(s, active[0]) is None
    seen = s.healthy(active[0].id)
    healthy = s.deployment.degraded is None if seen is None else seen  # as it was recorded last
    recorded = s.deployment.degraded
    cut_off = reach_fault(s, active[0]) is not None or (
        recorded is not None and stays_unreached(s, recorded)
    )
    if serving and s.is_up(active[0]) and healthy and trusted and not cut_off:
        return DeploymentStatus.RUNNING
    return DeploymentStatus.DEGRADED


def waits_for_secrets(update: Update, now: Instant) -> bool:
    """Whether it needs them again: the host was rebooted, and took those that it was given."""
    before_launch = isinstance(update.state, Preparing | AwaitingStop | Releasing | Launching)
    return before_launch and now.since(update.created_at) is None


def update_deadline(s: Situation, update: Update | None) -> Instant | None:
    """When the present step ends at the latest, if it has a deadline."""
    if update is None:
        return None
    match update.state:
        case Booting() as state:
            return deadline_of(state, s.health_of(update.enclave))
        case Verifying(deadline=deadline):
            return deadline
        case Soaking(until=until) | Draining(until=until):
            return until
        case _:
            return None


def _boot_note(s: Situation) -> str | None:
    """Of the new enclave while it boots."""
    update = s.update
    if update is None or not isinstance(update.state, Booting):
        return None
    return boot_note(s, s.enclaves[update.enclave])


def enclave_facts(s: Situation, row: Enclave) -> EnclaveFacts:
    """Everything to read about one enclave."""
    vm, health, judged = s.vm(row.id), s.health_of(row.id), s.verdicts.get(row.id)
    draining = (
        s.update is not None
        and s.update.decided is Decided.SWITCH
        and s.update.from_enclave == row.id
    )
    serves = s.deployment.route.enclave == row.id
    state = enclave_state(row, vm, health, draining=draining, serves=serves)
    reach = reached(s, row)
    if state is EnclaveState.RUNNING and reach is False:
        state = EnclaveState.UNHEALTHY
    return EnclaveFacts(
        row=row,
        revision=s.revisions.get(row.revision),
        debug=_is_debug(s, row),
        state=state,
        vm=vm,
        health=health,
        verdict=judged.verdict if judged else None,
        connections=s.connections.get(row.id),
        reached=reach,
    )


def _is_debug(s: Situation, row: Enclave) -> bool:
    revision = s.revisions.get(row.revision)
    return revision is not None and revision.debug


def enclave_state(
    row: Enclave, vm: VmView, health: HealthView | None, *, draining: bool, serves: bool = False
) -> EnclaveState:
    """The one word for an enclave. One that `serves`, as traffic is sent to it, has booted."""
    if row.lifecycle is Lifecycle.STOPPING:
        return EnclaveState.STOPPING
    if row.lifecycle in (Lifecycle.PLANNED, Lifecycle.LAUNCHING):
        return EnclaveState.LAUNCHING
    if vm.phase in (VmPhase.ABSENT, VmPhase.EXITED, VmPhase.STUCK):
        return EnclaveState.LOST
    if draining:
        return EnclaveState.DRAINING
    if health is not None and health.healthy is False and (health.boot_complete or serves):
        return EnclaveState.UNHEALTHY
    if health is None or not health.boot_complete:
        return EnclaveState.BOOTING
    return EnclaveState.RUNNING if health.healthy else EnclaveState.BOOTING
