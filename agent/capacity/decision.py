"""The strategy decision: can this run here, and at what price. Pure; never waits for room.

The rules in their order: a host or deployment that takes nothing now refuses; then a demand that
this board can never meet; then whatever no strategy can mend (listeners, leases, the release
itself). Of the strategies the first that fits: fresh where nothing of the deployment runs,
blue_green where a second whole copy fits beside everything else, stop_then_start where it fits
into what is free plus what the deployment's own enclaves hold. A shortage that passes by itself
(GPUs being cleaned) is refused with a time to come back, since it must not become an outage.

A strategy that was asked for by name is never replaced by another, nor is a lease of a whole copy
spent on an outage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from agent.capacity.accounts import Accounts
from agent.capacity.boards import Condition
from agent.capacity.estimate import NO_DOWNTIME, estimate_downtime
from agent.capacity.evidence import domain_warnings, evidence_faults
from agent.capacity.groups import legal_sizes, pick
from agent.capacity.ledger import Room
from agent.capacity.listeners import listener_warnings
from agent.capacity.promise import insisted_strategy, lease_faults
from agent.capacity.shortage import shortages
from agent.capacity.supply import Admission, Grant, HostSupply, Question
from agent.model.lease import Lease
from agent.model.reasons import (
    DecidedStrategy,
    Decision,
    DowntimeEstimate,
    Reason,
    ReasonCode,
    Strategy,
)
from agent.model.resources import Demand

_Reasons = list[Reason]


class _Books(NamedTuple):
    """Who holds what, what is free now, and what to prefer.

    Preferred are the things that the redeemed lease promised.
    """

    accounts: Accounts
    beside: Room
    promised: Lease | None
    downtime: DowntimeEstimate

    def instead(self, question: Question) -> Room:
        """What would be free without the deployment's own enclaves."""
        return self.accounts.room(gone=question.own, redeemed=question.lease)

    def kept(self, question: Question) -> str | None:
        """The address that the deployment has."""
        addresses = self.accounts.addresses
        return next((addresses[own] for own in question.own if addresses.get(own)), None)


def decide(
    question: Question,
    accounts: Accounts,
    *,
    history: Sequence[float] = (),
    stop: DowntimeEstimate = NO_DOWNTIME,
) -> Admission:
    """Choose the strategy, or refuse with every reason. Deterministic in its arguments.

    `history`: downtimes of earlier stop_then_starts, in seconds, in any order; `stop`: what
    the stop of the version that runs adds to them.
    """
    supply, leases = accounts.supply, accounts.leases
    for found in (
        _closed(question, supply),
        _impossible(question, supply),
        [
            *question.obstacles,
            *evidence_faults(question, supply),
            *lease_faults(question, leases, accounts.now),
            *accounts.listeners.taken(question),
        ],
    ):
        if found:
            return _refuse(found)
    mine = question.lease
    books = _Books(
        accounts=accounts,
        beside=accounts.room(redeemed=mine),
        promised=next((lease for lease in leases if lease.id == mine), None),
        downtime=estimate_downtime(history) + stop,
    )
    decided = (_update if question.own else _fresh)(question, supply, books)
    told = (*domain_warnings(question, supply), *listener_warnings(question, supply))
    return _warning(decided, (*question.warnings, *told))


def _warning(admission: Admission, warnings: tuple[str, ...]) -> Admission:
    """With what a person should know of it, if it is admitted."""
    if admission.grant is None or not warnings:
        return admission
    decision = msgspec.structs.replace(admission.decision, warnings=warnings)
    return msgspec.structs.replace(admission, decision=decision)


def _closed(question: Question, supply: HostSupply) -> _Reasons:
    """Reasons that have nothing to do with what is asked for."""
    found = []
    if not supply.inventory_complete:
        found.append(_reason(ReasonCode.INVENTORY_INCOMPLETE, "the host is still being surveyed"))
    if supply.draining:
        found.append(
            _reason(ReasonCode.HOST_DRAINING, "the host takes no new work: it is drained")
        )
    if question.running_update:
        found.append(
            _reason(
                ReasonCode.UPDATE_IN_PROGRESS, "another update of this deployment is under way"
            )
        )
    return found


def _impossible(question: Question, supply: HostSupply) -> _Reasons:
    """Whether the demand is one that this board could meet at all, were it empty."""
    wanted = question.demand
    found = []
    present, sizes = len(supply.gpus(*Condition)), legal_sizes(supply.boards)
    if wanted.gpus and present and wanted.gpus not in sizes:
        legal = ", ".join(str(size) for size in sorted(sizes)) or "none"
        detail = f"{wanted.gpus} GPUs are no legal group here; legal sizes: {legal}"
        found.append(_reason(ReasonCode.GPU_GROUP_ILLEGAL, detail))
    if wanted.gpus > present:
        found.append(
            Reason(
                code=ReasonCode.GPUS_INSUFFICIENT,
                detail=f"{wanted.gpus} GPUs are needed and this host has {present}",
                needed=wanted.gpus,
                available=present,
            )
        )
    if wanted.tee_ids and not (supply.tee_ids or supply.tee_ids_elsewhere):
        found.append(
            Reason(
                code=ReasonCode.TEE_UNAVAILABLE,
                detail="a TEE is needed and this host offers none",
                needed=wanted.tee_ids,
                available=0,
            )
        )
    return found


def _fresh(question: Question, supply: HostSupply, books: _Books) -> Admission:
    """Nothing of it runs: whatever was insisted on, there is nothing to keep or to stop."""
    short = shortages(question.demand, books.beside, supply)
    if short:
        return _refuse(short, _retry(short, supply))
    return _admit_beside(DecidedStrategy.FRESH, question, supply, books)


def _update(question: Question, supply: HostSupply, books: _Books) -> Admission:
    """Something of it runs."""
    insisted = insisted_strategy(question, books.promised)
    if insisted is Strategy.FRESH:
        detail = "fresh was asked for, but the deployment has an enclave here already"
        return _refuse([_reason(ReasonCode.STRATEGY_UNAVAILABLE, detail)])
    if insisted is Strategy.STOP_THEN_START:
        return _stop_then_start(question, supply, books, [])
    exclusive = _exclusive(question)
    short = shortages(question.demand, books.beside, supply)
    why_not = [*exclusive, *short]
    if not why_not:
        return _admit_beside(DecidedStrategy.BLUE_GREEN, question, supply, books)
    passing = None if exclusive else _retry(short, supply)
    if insisted is Strategy.BLUE_GREEN:
        who = "asked for" if question.insisted else "promised by the lease"
        detail = f"blue_green was {who}, and a second copy cannot run beside the first"
        return _refuse([_reason(ReasonCode.STRATEGY_UNAVAILABLE, detail), *why_not], passing)
    if passing is not None:
        return _refuse(short, passing)
    return _stop_then_start(question, supply, books, why_not)


def _stop_then_start(
    question: Question, supply: HostSupply, books: _Books, why_not_better: _Reasons
) -> Admission:
    instead = books.instead(question)
    short = shortages(question.demand, instead, supply)
    if short:
        return _refuse(short, _retry(short, supply))
    if question.staging and question.insisted is not Strategy.STOP_THEN_START:
        detail = (
            "with staging the running enclave would be stopped while the update waits; "
            "ask for stop_then_start by name to be asked before the stop"
        )
        reason = _reason(ReasonCode.STAGING_NEEDS_BLUE_GREEN, detail)
        return _refuse([reason, *why_not_better])
    grant = _grant(question.demand, supply, instead, books.kept(question), books.promised)
    return _admit(
        DecidedStrategy.STOP_THEN_START,
        msgspec.structs.replace(grant, replaces=question.own),
        why_not_better,
        books.downtime,
    )


def _exclusive(question: Question) -> _Reasons:
    """What two enclaves of one deployment can never have at once."""
    found = []
    volumes, challenge = question.demand.writable_volumes, question.demand.tls_challenge
    if volumes:
        detail = f"{volumes} writable volumes cannot be attached to two enclaves at once"
        found.append(_reason(ReasonCode.VOLUME_EXCLUSIVE, detail))
    if challenge:
        detail = (
            f"tls-challenge {challenge}: the certificate is proved at the deployment's public "
            "address, where a new enclave is not reached beside the old one"
        )
        found.append(_reason(ReasonCode.TLS_CHALLENGE_EXCLUSIVE, detail))
    return found


def _retry(short: _Reasons, supply: HostSupply) -> float | None:
    """When to come back, if nothing is short but GPUs that are being cleaned."""
    if short and all(reason.code is ReasonCode.GPUS_DIRTY for reason in short):
        return supply.cleaning_s
    return None


def _grant(
    demand: Demand, supply: HostSupply, free: Room, kept: str | None, promised: Lease | None
) -> Grant:
    """The things themselves: what is kept or was promised if it is free, else the best."""
    addresses = [kept, promised.address if promised else None, *free.addresses]
    group = pick(
        supply.boards,
        demand.gpus,
        free.taken,
        supply.numa_distances,
        preferred=promised.gpus if promised else (),
    )
    assert group is not None  # nothing was short
    return Grant(
        address=next((a for a in addresses if demand.addresses and a in free.addresses), None),
        gpus=group.gpus,
        switches=group.switches,
        gpu_mode=group.mode,
    )


def _reason(code: ReasonCode, detail: str) -> Reason:
    return Reason(code=code, detail=detail)


def _admit_beside(
    strategy: DecidedStrategy, question: Question, supply: HostSupply, books: _Books
) -> Admission:
    """Admit into what is free now, without any outage."""
    grant = _grant(question.demand, supply, books.beside, None, books.promised)
    return _admit(strategy, grant, [], NO_DOWNTIME)


def _admit(
    strategy: DecidedStrategy, grant: Grant, reasons: _Reasons, downtime: DowntimeEstimate
) -> Admission:
    decision = Decision(
        strategy=strategy,
        gpus=grant.gpus,
        reasons=tuple(reasons),
        downtime_estimate_s=downtime,
    )
    return Admission(decision=decision, grant=grant)


def _refuse(reasons: _Reasons, retry_after_s: float | None = None) -> Admission:
    decision = Decision(
        strategy=DecidedStrategy.REFUSE,
        reasons=tuple(reasons),
        retry_after_s=retry_after_s,
        downtime_estimate_s=NO_DOWNTIME,
    )
    return Admission(decision=decision, grant=None)
