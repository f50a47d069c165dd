"""Other GPUs for an enclave whose own were quarantined: chosen and taken in one transaction.

Whatever comes of it the enclave's row is another afterwards: with other GPUs and a launch of its
own, or ended, so that it counts among its relaunches.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection

import msgspec

from agent.capacity.accounts import Accounts
from agent.capacity.boards import set_aside
from agent.capacity.decision import decide
from agent.capacity.supply import Grant, HostSupply, Question
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.event import EventDraft
from agent.model.ids import Bdf, EnclaveId
from agent.model.lease import Claim, ClaimKind
from agent.model.revision import Revision
from agent.store.port import Reader, Transaction
from agent.updates.admission.gpus import recorded
from agent.updates.admission.judging import holdings


def reassign_gpus(
    tx: Transaction,
    enclave_id: EnclaveId,
    supply: HostSupply | None,
    quarantined: Collection[Bdf],
    now: Instant,
) -> None:
    """Give an enclave that is to be launched GPUs that are not in quarantine, if there are any."""
    row = tx.enclave(enclave_id)
    revision = tx.revision(row.deployment, row.revision) if row else None
    if row is None or revision is None:
        return
    if supply is not None:
        boards = set_aside(supply.boards, quarantined)
        supply = msgspec.structs.replace(supply, boards=boards, draining=False)
    grant, why = _choose(tx, row, revision, supply, now)
    if grant is None:
        tx.put_enclave(msgspec.structs.replace(row, lifecycle=Lifecycle.RUNNING))
        tx.append(_event(row, "refused", f"its GPUs are in quarantine, and no others: {why}"))
        return
    _take(tx, row, grant)
    tx.append(_event(row, "regrouped", f"from {', '.join(row.gpus)} to {', '.join(grant.gpus)}"))


def _choose(
    tx: Reader, row: Enclave, revision: Revision, supply: HostSupply | None, now: Instant
) -> tuple[Grant | None, str]:
    """As for a deployment that has nothing: what this enclave holds counts as free."""
    if supply is None:
        return None, "what the host has is not known"
    admission = decide(
        Question(demand=revision.demand, deployment=row.deployment),
        Accounts(
            recorded(tx, supply),
            holdings=[one for one in holdings(tx) if one.enclave != row.id],
            claims=[claim for claim in tx.claims() if claim.holder != row.id],
            leases=tx.leases(),
            now=now,
        ),
    )
    why = "; ".join(reason.detail for reason in admission.decision.reasons)
    return admission.grant, why


def _take(tx: Transaction, row: Enclave, grant: Grant) -> None:
    """Its address stays; the claims on its GPUs change hands."""
    tx.release_claims(row.id, ClaimKind.GPU)
    for bdf in (*grant.gpus, *grant.switches):
        tx.claim(Claim(kind=ClaimKind.GPU, key=bdf, holder=row.id))
    tx.put_enclave(
        msgspec.structs.replace(
            row,
            launch_uuid=str(uuid.uuid4()),
            gpus=grant.gpus,
            switches=grant.switches,
            gpu_mode=grant.gpu_mode,
        )
    )


def _event(row: Enclave, to: str, reason: str) -> EventDraft:
    return EventDraft(
        kind="regroup", deployment=row.deployment, enclave=row.id, to=to, reason=reason
    )
