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
_DIMENSIONS = Amounts.__struct_fields__


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What is free: amounts (negative where too much was given away), and which things.

    `taken`: GPUs and switches that somebody holds or was promised.
    """

    amounts: Amounts
    addresses: tuple[str, ...]
    taken: frozenset[Bdf]


class _Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A holding or a lease, made alike. `enclave` None: a lease."""

    enclave: EnclaveId | None
    amounts: Amounts
    address: str | None
    devices: tuple[Bdf, ...]
    replaces: frozenset[EnclaveId]


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


def free(
    supply: HostSupply, holdings: Sequence[Holding], leases: Sequence[Lease], now: Instant
) -> Amounts:
    """What can be given away now; never negative."""
    amounts = room(supply, holdings, leases, now).amounts
    return Amounts(**{name: max(0, getattr(amounts, name)) for name in _DIMENSIONS})


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
    staying = [holding for holding in holdings if holding.enclave not in gone]
    holders = [_of_holding(holding) for holding in staying] + [
        _of_lease(lease, staying) for lease in active(leases, now) if lease.id != redeemed
    ]
    counted = _counted(holders)
    taken = frozenset(device for holder in holders for device in holder.devices)
    addresses = _without(
        supply.addresses,
        {holder.address for holder in holders} | _occupied(supply, holdings),
    )
    held = sum((amounts for _, amounts in counted), start=Amounts())
    memory = min(
        supply.memory_mib - held.memory_mib, _available_mib(supply, holdings, gone, counted)
    )
    return Room(
        amounts=Amounts(
            gpus=len(_without(supply.gpus(Condition.READY), taken)),
            memory_mib=memory - supply.reserve_memory_mib,
            vcpus=supply.vcpus - supply.reserve_vcpus - held.vcpus,
            tee_ids=supply.tee_ids - held.tee_ids,
            addresses=len(addresses),
            disk_mib=_disk_mib(supply, holdings, gone, counted),
        ),
        addresses=addresses,
        taken=taken,
    )


def _without(things: Sequence[_T], taken: Collection[_T | None]) -> tuple[_T, ...]:
    return tuple(thing for thing in dict.fromkeys(things) if thing not in taken)


def _occupied(supply: HostSupply, holdings: Sequence[Holding]) -> set[str]:
    """Addresses that nobody holds and yet somebody listens on: a VM that is still ending, say."""
    held = {holding.address for holding in holdings}
    return {listen.address for listen in supply.foreign_listeners} - held


def _of_holding(holding: Holding) -> _Holder:
    return _Holder(
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


def _of_lease(lease: Lease, holdings: Sequence[Holding]) -> _Holder:
    """A lease of a stop_then_start will take over what its deployment's enclaves hold."""
    replaces: frozenset[EnclaveId] = frozenset()
    if lease.strategy is Strategy.STOP_THEN_START and lease.deployment is not None:
        replaces = frozenset(h.enclave for h in holdings if h.deployment == lease.deployment)
    return _Holder(
        enclave=None,
        amounts=cost(lease.demand),
        address=lease.address,
        devices=lease.gpus,
        replaces=replaces,
    )


def _counted(holders: Sequence[_Holder]) -> list[tuple[EnclaveId | None, Amounts]]:
    """What each holder adds to the sum, so that no order of ends can give a thing away twice.

    A holder inherits from those that it replaces, but not from one that has itself still to
    inherit: if that one ends first, what it stands on is still held.
    """
    known = {holder.enclave for holder in holders}
    heirs = {holder.enclave for holder in holders if holder.replaces & known}
    left = {h.enclave: h.amounts for h in holders if h.enclave and h.enclave not in heirs}
    counted = []
    for holder in holders:
        sources = [left.pop(e) for e in sorted(holder.replaces) if e in left]
        counted.append((holder.enclave, _beyond(holder.amounts, sum(sources, start=Amounts()))))
    return counted


def _beyond(needed: Amounts, inherited: Amounts) -> Amounts:
    more = needed - inherited
    return Amounts(**{name: max(0, getattr(more, name)) for name in _DIMENSIONS})


def _available_mib(
    supply: HostSupply,
    holdings: Sequence[Holding],
    gone: Collection[EnclaveId],
    counted: Sequence[tuple[EnclaveId | None, Amounts]],
) -> int:
    """MemAvailable once those in `gone` are stopped and all others use all of theirs."""
    if supply.mem_available_mib is None:
        return supply.memory_mib
    pending = _pending([(e, amounts.memory_mib) for e, amounts in counted], supply.resident_mib)
    return supply.mem_available_mib + _returned(holdings, gone, supply.resident_mib) - pending


def _disk_mib(
    supply: HostSupply,
    holdings: Sequence[Holding],
    gone: Collection[EnclaveId],
    counted: Sequence[tuple[EnclaveId | None, Amounts]],
) -> int:
    pending = _pending([(e, amounts.disk_mib) for e, amounts in counted], supply.written_mib)
    return supply.disk_free_mib + _returned(holdings, gone, supply.written_mib) - pending


def _pending(
    promised: Sequence[tuple[EnclaveId | None, int]], used: Mapping[EnclaveId, int]
) -> int:
    """What was promised but is not used yet."""
    return sum(max(0, mib - (used.get(e, 0) if e else 0)) for e, mib in promised)


def _returned(
    holdings: Sequence[Holding], gone: Collection[EnclaveId], used: Mapping[EnclaveId, int]
) -> int:
    return sum(used.get(h.enclave, 0) for h in holdings if h.enclave in gone)
