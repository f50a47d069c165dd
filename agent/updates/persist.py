"""From rows to a situation, and from a write to rows: the store's side of a turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from agent.enclaves.port import VmView
from agent.inventory.preparation.records import count_launch, mark_used
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.lease import Claim, ClaimKind
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
from agent.probes.port import HealthView
from agent.store.port import Reader, Transaction
from agent.updates.bringing_back import owe
from agent.updates.patience import BOOTS, shape_of
from agent.updates.situation import Action, Judged, Outcome, Policy, Situation, Write

# A VM of this launch has, or may have, had the GPUs: they are dirty from the moment it is known,
# so that the next launch requalifies them.
_HAS_RUN = (Lifecycle.RUNNING, Lifecycle.STOPPING)
_BEFORE_READY = (Preparing, StoppingOld, Releasing, Launching, Booting, Verifying)


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen, before any row is read. Same fields as in Situation."""

    now: Instant
    policy: Policy
    vms: dict[EnclaveId, VmView] = field(default_factory=dict)
    health: dict[EnclaveId, HealthView] = field(default_factory=dict)
    verdicts: dict[EnclaveId, Judged] = field(default_factory=dict)
    connections: dict[EnclaveId, int] = field(default_factory=dict)
    applied_generation: int | None = None
    firmware_changed_at: Instant | None = None
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
    downtimes: tuple[float, ...]
    boots: tuple[float, ...] = ()

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
    return Rows(
        deployment=deployment,
        update=update,
        latest_update=latest[0] if latest else None,
        enclaves=tuple(tx.enclaves(name)),
        revisions=tuple(tx.revisions(name)),
        secret_versions=tx.secret_versions(name),
        downtimes=tuple(tx.samples("downtime", name) or tx.samples("downtime", "")),
        boots=_boots(tx, update),
    )


def _boots(tx: Reader, update: Update | None) -> tuple[float, ...]:
    """How long guests of this size took to boot; asked while it matters."""
    if update is None or not isinstance(update.state, _BEFORE_READY):
        return ()
    revision = tx.revision(update.deployment, update.revision)
    return tuple(tx.samples(BOOTS, shape_of(revision.demand))) if revision else ()


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
        applied_generation=seen.applied_generation,
        firmware_changed_at=seen.firmware_changed_at,
        outcomes=seen.outcomes,
        host_stopping=seen.host_stopping,
        boots=rows.boots,
        secrets={name: version for name, (version, _) in rows.secret_versions.items()},
        values_here=seen.values_here,
        values_at_rest=seen.values_at_rest,
    )


def persist(
    tx: Transaction,
    name: DeploymentName,
    write: Write,
    console_tail: Callable[[EnclaveId], str],
    now: Instant,
) -> None:
    """Apply a write inside a transaction."""
    if write.put_revision:
        tx.put_revision(write.put_revision)
    for row in write.put_enclaves:
        tx.put_enclave(row)
        if row.lifecycle in _HAS_RUN:
            _soil(tx, row, now)
    _count(tx, write)
    if write.inherit:
        _inherit(tx, *write.inherit, now)
    for enclave_id in write.drop_enclaves:
        _drop(tx, enclave_id, now)
    if write.deployment:
        tx.put_deployment(_with_last_words(write.deployment, write.last_words, console_tail))
    if write.update:
        _put_update(tx, write.update, console_tail)
    if write.restart is not None:
        owe(tx, name, write.restart)
    for sample in write.samples:
        tx.add_sample(sample)
    for event in write.events:
        tx.append(event)
    if write.delete_deployment:
        tx.delete_deployment(name)


def _count(tx: Transaction, write: Write) -> None:
    """What a launch says of its GPUs, once its boot is over: QEMU's own start proves nothing."""
    for enclave_id, failed in ((write.failed_on, True), (write.proven_on, False)):
        row = tx.enclave(enclave_id) if enclave_id else None
        if row is not None:
            count_launch(tx, (*row.gpus, *row.switches), failed=failed)


def whose_words(write: Write) -> EnclaveId | None:
    """The enclave whose console is quoted in what is to be written."""
    if write.last_words is not None:
        return write.last_words
    fault = write.update.fault if write.update else None
    return write.update.enclave if write.update and fault and fault.console_tail is None else None


def _with_last_words(
    deployment: Deployment, enclave: EnclaveId | None, console_tail: Callable[[EnclaveId], str]
) -> Deployment:
    if enclave is None or deployment.fault is None:
        return deployment
    fault = msgspec.structs.replace(deployment.fault, console_tail=console_tail(enclave))
    return msgspec.structs.replace(deployment, fault=fault)


def _put_update(tx: Transaction, update: Update, console_tail: Callable[[EnclaveId], str]) -> None:
    """With the console's last words beside a fault, and listeners given back at the end."""
    fault = update.fault
    if fault and fault.console_tail is None:
        tail = console_tail(update.enclave)
        fault = msgspec.structs.replace(fault, console_tail=tail)
        update = msgspec.structs.replace(update, fault=fault)
    tx.put_update(update)
    if not update.running:
        reclaim_listeners(tx, update.deployment)


def reclaim_listeners(tx: Transaction, name: DeploymentName) -> None:
    """Hold exactly the listeners of the revision that serves, or that would be tried again."""
    deployment = tx.deployment(name)
    if deployment is None:
        return
    number = deployment.active_revision or deployment.last_revision
    revision = tx.revision(name, number)
    tx.release_claims(name, ClaimKind.LISTEN)
    for key in revision.listen_claims if revision else ():
        tx.claim(Claim(kind=ClaimKind.LISTEN, key=key, holder=name))


def _soil(tx: Transaction, row: Enclave, now: Instant) -> None:
    mark_used(tx, (*row.gpus, *row.switches), row.id, now)


def _drop(tx: Transaction, enclave_id: EnclaveId, now: Instant) -> None:
    """It goes; its GPUs are dirty in the same moment in which they are nobody's."""
    row = tx.enclave(enclave_id)
    if row is not None and row.lifecycle is not Lifecycle.PLANNED:
        _soil(tx, row, now)
    tx.delete_enclave(enclave_id)


def _inherit(tx: Transaction, old: EnclaveId, new: EnclaveId, now: Instant) -> None:
    """What the old enclave held exclusively passes to the new one; the old row goes."""
    held = [claim for claim in tx.claims() if claim.holder == old]
    _drop(tx, old, now)
    for claim in held:
        row = tx.enclave(new)
        wanted = row is not None and (
            (claim.kind == ClaimKind.ADDRESS and claim.key == row.address)
            or (claim.kind == ClaimKind.GPU and claim.key in (*row.gpus, *row.switches))
        )
        if wanted:
            tx.claim(Claim(kind=claim.kind, key=claim.key, holder=new))
