"""What a lease is worth to the request that brings it: whether it holds, and covers the demand.

Pure. A lease is spent for what it promised: a demand beyond it is refused with numbers, even where
the rest would be free by chance, so that its holder learns of the mistake on every host alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.capacity.ledger import active
from agent.capacity.supply import Question
from agent.model.clock import Instant
from agent.model.lease import Lease
from agent.model.reasons import Reason, ReasonCode, Strategy

_COVERED = (
    ("gpus", ReasonCode.GPUS_INSUFFICIENT, "GPUs"),
    ("memory_mib", ReasonCode.MEMORY_INSUFFICIENT, "MiB of memory"),
    ("vcpus", ReasonCode.VCPUS_INSUFFICIENT, "vCPUs"),
    ("tee_ids", ReasonCode.TEE_IDS_EXHAUSTED, "TEE ids"),
    ("addresses", ReasonCode.ADDRESSES_EXHAUSTED, "addresses"),
    ("disk_mib", ReasonCode.DISK_INSUFFICIENT, "MiB of disk"),
)


def lease_faults(question: Question, leases: Sequence[Lease], now: Instant) -> list[Reason]:
    """Why the lease that is brought cannot be redeemed; empty without one."""
    if question.lease is None:
        return []
    lease = next((lease for lease in active(leases, now) if lease.id == question.lease), None)
    if lease is None:
        detail = f"lease {question.lease} does not hold any more"
    elif lease.deployment not in (None, question.deployment):
        detail = f"lease {lease.id} was made for deployment {lease.deployment}"
    else:
        return _uncovered(question, lease)
    return [Reason(code=ReasonCode.LEASE_EXPIRED, detail=detail)]


def _uncovered(question: Question, lease: Lease) -> list[Reason]:
    found = []
    for name, code, unit in _COVERED:
        wanted, promised = getattr(question.demand, name), getattr(lease.demand, name)
        if wanted > promised:
            detail = f"lease {lease.id} promises {promised} {unit}, {wanted} needed"
            found.append(Reason(code=code, detail=detail, needed=wanted, available=promised))
    return found


def insisted_strategy(question: Question, promised: Lease | None) -> Strategy | None:
    """What the request insists on; a lease of a whole copy must not end in an outage."""
    if question.insisted or promised is None or promised.strategy is Strategy.STOP_THEN_START:
        return question.insisted
    return Strategy.BLUE_GREEN
