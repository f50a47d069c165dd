"""The rows of leases: granted, spent, given back, expired; each with its claims and its event.

All of it inside a transaction of the caller's. A lease that has expired holds nothing, whether or
not `expire` has run since: whoever admits runs it first in the same transaction, so that its
claims are in nobody's way.
"""

from __future__ import annotations

import msgspec

from agent.capacity.supply import Grant
from agent.model.clock import Instant
from agent.model.event import EventDraft
from agent.model.ids import LeaseId, UpdateId
from agent.model.lease import Claim, ClaimKind, Lease
from agent.store.port import Reader, Transaction
from agent.updates.admission.audit import sign
from agent.updates.errors import LeaseExpiredError, UnknownNameError
from agent.updates.orders import Caller

_EXPIRED_KEPT = 100  # so that whoever asks for one is told that it expired


def find(tx: Reader, lease_id: LeaseId, now: Instant) -> Lease:
    """A lease that holds. Raises UnknownNameError or LeaseExpiredError."""
    lease = next((row for row in tx.leases() if row.id == lease_id), None)
    if lease is None:
        raise UnknownNameError(f"no lease {lease_id}")
    if lease.expired or now.reached(lease.expires_at):
        raise LeaseExpiredError(
            f"lease {lease_id} expired at {lease.expires_at.shown(now):%FT%TZ}"
        )
    return lease


def record(tx: Transaction, lease: Lease, grant: Grant, caller: Caller) -> None:
    """Make a promise: its row, and what it has to itself.

    What an enclave that it replaces holds is claimed by nobody else meanwhile; the ledger keeps
    it for the lease should that enclave go.
    """
    held = {(claim.kind, claim.key): claim.holder for claim in tx.claims()}
    wanted: list[tuple[str, str]] = [(ClaimKind.GPU, gpu) for gpu in lease.gpus]
    if lease.address is not None:
        wanted.append((ClaimKind.ADDRESS, lease.address))
    for kind, key in wanted:
        if held.get((kind, key)) not in grant.replaces:
            tx.claim(Claim(kind=kind, key=key, holder=lease.id))
    tx.put_lease(lease)
    sign(tx, _event(lease, "granted", str(lease.strategy)), caller)


def spend(tx: Transaction, lease_id: LeaseId, update: UpdateId, caller: Caller) -> None:
    """The promise is kept: what it held is free for the update's enclave, in this transaction."""
    lease = next(row for row in tx.leases() if row.id == lease_id)
    _let_go(tx, lease.id)
    tx.delete_lease(lease.id)
    sign(tx, msgspec.structs.replace(_event(lease, "spent"), update=update), caller)


def give_back(tx: Transaction, lease_id: LeaseId, now: Instant, caller: Caller) -> None:
    """Its holder needs it no more. Raises UnknownNameError or LeaseExpiredError."""
    lease = find(tx, lease_id, now)
    _let_go(tx, lease.id)
    tx.delete_lease(lease.id)
    sign(tx, _event(lease, "given back"), caller)


def due(tx: Reader, now: Instant) -> list[Lease]:
    """Those that have expired and still hold claims."""
    return [row for row in tx.leases() if not row.expired and now.reached(row.expires_at)]


def expire(tx: Transaction, now: Instant) -> None:
    """Give back what those held, each with an event; forget all but the newest expired ones."""
    for lease in due(tx, now):
        _let_go(tx, lease.id)
        tx.put_lease(msgspec.structs.replace(lease, expired=True))
        rebooted = now.since(lease.expires_at) is None
        why = "the host was rebooted" if rebooted else "its time was up"
        tx.append(_event(lease, "expired", why))
    for lease in [row for row in tx.leases() if row.expired][:-_EXPIRED_KEPT]:
        tx.delete_lease(lease.id)


def _let_go(tx: Transaction, lease_id: LeaseId) -> None:
    tx.release_claims(lease_id, ClaimKind.GPU)
    tx.release_claims(lease_id, ClaimKind.ADDRESS)


def _event(lease: Lease, to: str, why: str | None = None) -> EventDraft:
    about = f"lease {lease.id}"
    return EventDraft(
        kind="lease",
        deployment=lease.deployment,
        to=to,
        reason=f"{about}: {why}" if why else about,
    )
