"""What is recorded and what is seen of one deployment, and both joined into a situation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.enclaves.port import VmView
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.power_button import ButtonRecord
from agent.model.revision import Deployment, Revision
from agent.model.update import (
    Booting,
    Launching,
    Preparing,
    Releasing,
    StoppingOld,
    Update,
    Verifying,
)
from agent.probes.port import HealthView, OutsideView
from agent.store.port import Reader
from agent.updates.admission.certificates import boots_of
from agent.updates.admission.downtimes import read_downtimes
from agent.updates.admission.power_button import is_deaf, read_buttons
from agent.updates.planner.boot_deadline import BOOTS, shape_of
from agent.updates.planner.certificates import certificate_domain
from agent.updates.planner.downtimes import Downtimes
from agent.updates.planner.shut_door import ANSWERS
from agent.updates.planner.types import Action, Judged, Outcome, Policy, Situation

_BEFORE_READY = (Preparing, StoppingOld, Releasing, Launching, Booting, Verifying)


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen, before any row is read. Same fields as in Situation, and one for readers.

    `refused`: limit → how many connections or packets the data plane refused by it.
    """

    now: Instant
    policy: Policy
    vms: dict[EnclaveId, VmView] = field(default_factory=dict)
    health: dict[EnclaveId, HealthView] = field(default_factory=dict)
    verdicts: dict[EnclaveId, Judged] = field(default_factory=dict)
    connections: dict[EnclaveId, int] = field(default_factory=dict)
    draining: Mapping[EnclaveId, int | None] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    applied_generation: int | None = None
    outside: OutsideView | None = None
    judge_again_at: Instant | None = None
    outcomes: dict[Action, Outcome] = field(default_factory=dict)
    host_stopping: bool = False
    values_here: frozenset[tuple[str, int]] = frozenset()
    values_at_rest: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Rows:
    """Everything recorded of one deployment that a turn or a reader needs."""

    deployment: Deployment
    update: Update | None
    latest_update: Update | None
    enclaves: tuple[Enclave, ...]
    revisions: tuple[Revision, ...]
    secret_versions: dict[str, tuple[int, str]]
    downtimes: Downtimes
    boots: tuple[float, ...] = ()
    answers: tuple[float, ...] = ()
    certificate_boots: dict[str, tuple[float, ...]] = field(default_factory=dict)
    buttons: Mapping[str, ButtonRecord] = field(default_factory=dict)

    def revision(self, number: int | None) -> Revision | None:
        """A revision by number."""
        return next((row for row in self.revisions if row.number == number), None)


def read_rows(tx: Reader, name: DeploymentName) -> Rows | None:
    """The rows of one deployment, or None when it is gone."""
    deployment = tx.deployment(name)
    if deployment is None:
        return None
    latest = tx.updates(name, limit=1)
    update = tx.running_update(name)
    enclaves, revisions = tuple(tx.enclaves(name)), tuple(tx.revisions(name))
    serving = update.from_revision if update else deployment.active_revision
    stopped = tx.revision(name, serving) if serving is not None else None
    return Rows(
        deployment=deployment,
        update=update,
        latest_update=latest[0] if latest else None,
        enclaves=enclaves,
        revisions=revisions,
        secret_versions=tx.secret_versions(name),
        downtimes=read_downtimes(tx, name, stopped.image_version if stopped else None),
        boots=_history(tx, update, BOOTS),
        answers=_history(tx, update, ANSWERS),
        certificate_boots=_certificate_boots(tx, enclaves, revisions),
        buttons=read_buttons(tx, revisions),
    )


def _certificate_boots(
    tx: Reader, enclaves: Iterable[Enclave], revisions: Iterable[Revision]
) -> dict[str, tuple[float, ...]]:
    """Of the domains of its enclaves."""
    numbers = {row.revision for row in enclaves}
    domains = {certificate_domain(row) for row in revisions if row.number in numbers}
    return {domain: boots_of(tx, domain) for domain in domains if domain is not None}


def _history(tx: Reader, update: Update | None, kind: str) -> tuple[float, ...]:
    """How long guests of this size took; asked while it matters."""
    if update is None or not isinstance(update.state, _BEFORE_READY):
        return ()
    revision = tx.revision(update.deployment, update.revision)
    return tuple(tx.samples(kind, shape_of(revision.demand))) if revision else ()


def _of_this_route(deployment: Deployment, outside: OutsideView | None) -> OutsideView | None:
    """What clients reached under another decision says nothing of this one."""
    if outside is None or outside.generation != deployment.route.generation:
        return None
    return outside


def situation(rows: Rows, seen: Observation) -> Situation:
    """Rows and observation joined; verdicts only where they are about this very launch and key."""
    enclaves = {row.id: row for row in rows.enclaves}
    verdicts = {}
    for enclave_id, judged in seen.verdicts.items():
        row, health = enclaves.get(enclave_id), seen.health.get(enclave_id)
        if row and health and judged.key == f"{row.launch_uuid}/{health.spki_sha256}":
            verdicts[enclave_id] = judged
    return Situation(
        now=seen.now,
        deployment=rows.deployment,
        update=rows.update,
        enclaves=enclaves,
        revisions={row.number: row for row in rows.revisions},
        policy=seen.policy,
        vms=seen.vms,
        health=seen.health,
        verdicts=verdicts,
        connections=seen.connections,
        draining=seen.draining,
        applied_generation=seen.applied_generation,
        outside=_of_this_route(rows.deployment, seen.outside),
        judge_again_at=seen.judge_again_at,
        outcomes=seen.outcomes,
        host_stopping=seen.host_stopping,
        boots=rows.boots,
        answers=rows.answers,
        certificate_boots=rows.certificate_boots,
        deaf=frozenset(
            row.number for row in rows.revisions if is_deaf(row, rows.buttons, seen.now.wall)
        ),
        secrets={name: version for name, (version, _) in rows.secret_versions.items()},
        values_here=seen.values_here,
        values_at_rest=seen.values_at_rest,
    )
