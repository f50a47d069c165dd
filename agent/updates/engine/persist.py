"""From rows to a situation, and from a write to rows: the store's side of a turn."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.inventory.preparation.records import count_launch, mark_used
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.lease import Claim, ClaimKind
from agent.model.revision import Deployment
from agent.model.update import Update
from agent.store.port import Transaction
from agent.updates.admission.accept_chip import forget_refused_chip
from agent.updates.admission.restart_old import promise_restart_old
from agent.updates.planner.types import Write

# A VM of this launch has, or may have, had the GPUs: they are dirty from the moment it is known,
# so that the next launch requalifies them.
_HAS_RUN = (Lifecycle.RUNNING, Lifecycle.STOPPING)


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
            _mark_gpus_dirty(tx, row, now)
    _count(tx, write)
    if write.inherit:
        _inherit(tx, *write.inherit, now)
    for enclave_id in write.drop_enclaves:
        _drop(tx, enclave_id, now)
    if write.deployment:
        tx.put_deployment(_with_last_words(write.deployment, write.last_words, console_tail))
    if write.update:
        _put_update(tx, write.update, console_tail)
    if write.restart_old is not None:
        promise_restart_old(tx, name, write.restart_old)
    for sample in write.samples:
        tx.add_sample(sample)
    for event in write.events:
        tx.append(event)
    if write.delete_deployment:
        tx.delete_deployment(name)
        forget_refused_chip(tx, name)


def _count(tx: Transaction, write: Write) -> None:
    """What a launch says of its GPUs, once its boot is over: QEMU's own start proves nothing."""
    count_launch(tx, write.failed_on, failed=True)
    row = tx.enclave(write.proven_on) if write.proven_on else None
    if row is not None:
        count_launch(tx, (*row.gpus, *row.switches), failed=False)


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


def _mark_gpus_dirty(tx: Transaction, row: Enclave, now: Instant) -> None:
    mark_used(tx, (*row.gpus, *row.switches), row.id, now)


def _drop(tx: Transaction, enclave_id: EnclaveId, now: Instant) -> None:
    """It goes; its GPUs are dirty in the same moment in which they are nobody's."""
    row = tx.enclave(enclave_id)
    if row is not None and row.lifecycle is not Lifecycle.PLANNED:
        _mark_gpus_dirty(tx, row, now)
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
