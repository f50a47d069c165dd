"""The ledger: what is free, given what the host has and who was promised what.

Invariant: whatever is admitted into what `room` calls free can be used to the full by all holders
at once, and the reserve is still there. Enclaves that never run together (a holding and those that
it replaces) are counted as the larger of the two in every dimension.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import msgspec

from agent.capacity.boards import Condition
from agent.capacity.supply import Holding, HostSupply, cost, vm_memory_mib
from agent.model.clock import Instant
from agent.model.ids import Bdf, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import Strategy
from agent.model.resources import Amounts

_T = TypeVar("_T")


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What is free: amounts (negative where too much was given away), and which things.

    `taken`: GPUs and switches that somebody holds or was promised.
    """

    amounts: Amounts
    addresses: tuple[str, ...]
    taken: frozenset[Bdf]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A holding or a lease, made alike. `enclave` None: a lease."""

    enclave: EnclaveId | None
    amounts: Amounts
    address: str | None
    devices: tuple[Bdf, ...]
    replaces: frozenset[EnclaveId]


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """What holders take together. `pending_…`: of that, what they do not use yet."""

    held: Amounts = Amounts()
    pending_memory_mib: int = 0
    pending_disk_mib: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            held=self.held + other.held,
            pending_memory_mib=self.pending_memory_mib + other.pending_memory_mib,
            pending_disk_mib=self.pending_disk_mib + other.pending_disk_mib,
        )

    def __sub__(self, other: Sums) -> Sums:
        return Sums(
            held=self.held - other.held,
            pending_memory_mib=self.pending_memory_mib - other.pending_memory_mib,
            pending_disk_mib=self.pending_disk_mib - other.pending_disk_mib,
        )


def total(supply: HostSupply) -> Amounts:
    """What an empty host could give."""
    return Amounts(
        gpus=len(supply.gpus(Condition.READY, Condition.CLEANING)),
        memory_mib=max(0, supply.memory_mib - supply.reserve_memory_mib),
        vcpus=max(0, supply.vcpus - supply.reserve_vcpus),
        tee_ids=supply.tee_ids,
        addresses=len(set(supply.addresses)),
        disk_mib=supply.disk_free_mib + sum(supply.written_mib.values()),
    )


def leased(leases: Sequence[Lease], now: Instant) -> Amounts:
    """What the leases that still hold promise, whether or not an enclave holds it meanwhile."""
    return sum((cost(lease.demand) for lease in active(leases, now)), start=Amounts())


def active(leases: Sequence[Lease], now: Instant) -> list[Lease]:
    """The leases that still hold: not expired, and of this boot."""
    return [lease for lease in leases if not now.reached(lease.expires_at)]


def room(
    supply: HostSupply,
    holdings: Sequence[Holding],
    leases: Sequence[Lease],
    now: Instant,
    *,
    gone: Collection[EnclaveId] = (),
    redeemed: LeaseId | None = None,
) -> Room:
    """What is free, or would be if the enclaves in `gone` were stopped.

    The lease `redeemed` is not held against its owner. Holders are taken in the order given, then
    the leases; where two replace the same enclave only the first inherits from it.
    """
    holders = holders_of(supply, holdings, leases, now, gone=gone, redeemed=redeemed)
    taken = frozenset(device for holder in holders for device in holder.devices)
    used = {holder.address for holder in holders} | occupied(supply, holdings)
    ended = {holding.enclave for holding in holdings} & set(gone)
    return room_beside(supply, sums_of(supply, holders), ended, taken, used)


def holders_of(
    supply: HostSupply,
    holdings: Sequence[Holding],
    leases: Sequence[Lease],
    now: Instant,
    *,
    gone: Collection[EnclaveId] = (),
    redeemed: LeaseId | None = None,
) -> list[Holder]:
    """Whoever still has something: the holdings in the order given, then the leases."""
    staying = [holding for holding in holdings if holding.enclave not in gone]
    return [_of_holding(holding) for holding in staying] + [
        lease_holder(lease, staying) for lease in active(leases, now) if lease.id != redeemed
    ]


def sums_of(supply: HostSupply, holders: Sequence[Holder]) -> Sums:
    """What they take together, those that never run together counted once."""
    found = Sums()
    for enclave, amounts in _counted(holders):
        found += Sums(
            held=amounts,
            pending_memory_mib=_pending(enclave, amounts.memory_mib, supply.resident_mib),
            pending_disk_mib=_pending(enclave, amounts.disk_mib, supply.written_mib),
        )
    return found


def room_beside(
    supply: HostSupply,
    sums: Sums,
    gone: Collection[EnclaveId],
    taken: frozenset[Bdf],
    used: Collection[str | None],
) -> Room:
    """What the holders leave. `gone` give back what they use; `used` are addresses."""
    addresses = _without(supply.addresses, used)
    memory = supply.memory_mib - sums.held.memory_mib
    if supply.mem_available_mib is not None:  # once all holders use all of theirs
        returned = _returned(gone, supply.resident_mib)
        memory = min(memory, supply.mem_available_mib + returned - sums.pending_memory_mib)
    disk = supply.disk_free_mib + _returned(gone, supply.written_mib) - sums.pending_disk_mib
    return Room(
        amounts=Amounts(
            gpus=len(_without(supply.gpus(Condition.READY), taken)),
            memory_mib=memory - supply.reserve_memory_mib,
            vcpus=supply.vcpus - supply.reserve_vcpus - sums.held.vcpus,
            tee_ids=supply.tee_ids - sums.held.tee_ids,
            addresses=len(addresses),
            disk_mib=disk,
        ),
        addresses=addresses,
        taken=taken,
    )


def _without(things: Sequence[_T], taken: Collection[_T | None]) -> tuple[_T, ...]:
    return tuple(thing for thing in dict.fromkeys(things) if thing not in taken)


def occupied(supply: HostSupply, holdings: Sequence[Holding]) -> set[str]:
    """Addresses that nobody holds and yet somebody listens on: a VM that is still ending, say."""
    held = {holding.address for holding in holdings}
    return {listen.address for listen in supply.foreign_listeners} - held


def _of_holding(holding: Holding) -> Holder:
    return Holder(
        enclave=holding.enclave,
        amounts=Amounts(
            memory_mib=vm_memory_mib(holding.memory_mib),
            vcpus=holding.vcpus,
            tee_ids=holding.tee_ids,
            disk_mib=holding.disk_mib,
        ),
        address=holding.address,
        devices=(*holding.gpus, *holding.switches),
        replaces=frozenset(holding.replaces) - {holding.enclave},
    )


def lease_holder(lease: Lease, holdings: Sequence[Holding]) -> Holder:
    """A lease of a stop_then_start will take over what its deployment's enclaves hold."""
    replaces: frozenset[EnclaveId] = frozenset()
    if lease.strategy is Strategy.STOP_THEN_START and lease.deployment is not None:
        replaces = frozenset(h.enclave for h in holdings if h.deployment == lease.deployment)
    return Holder(
        enclave=None,
        amounts=cost(lease.demand),
        address=lease.address,
        devices=lease.gpus,
        replaces=replaces,
    )


def _counted(holders: Sequence[Holder]) -> list[tuple[EnclaveId | None, Amounts]]:
    """What each holder adds to the sum, so that no order of ends can give a thing away twice.

    A holder inherits from those that it replaces, but not from one that has itself still to
    inherit: if that one ends first, what it stands on is still held.
    """
    known = {holder.enclave for holder in holders}
    heirs = {holder.enclave for holder in holders if holder.replaces & known}
    left = {h.enclave: h.amounts for h in holders if h.enclave and h.enclave not in heirs}
    counted = []
    for holder in holders:
        amounts = holder.amounts
        for source in sorted(holder.replaces & left.keys()):
            amounts -= left.pop(source)
        counted.append((holder.enclave, amounts.at_least_zero()))
    return counted


def _pending(enclave: EnclaveId | None, mib: int, used: Mapping[EnclaveId, int]) -> int:
    """What was promised but is not used yet."""
    return max(0, mib - (used.get(enclave, 0) if enclave else 0))


def _returned(gone: Collection[EnclaveId], used: Mapping[EnclaveId, int]) -> int:
    return sum(used.get(enclave, 0) for enclave in gone)
