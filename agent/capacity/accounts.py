"""All that is held of a host at one moment, summed once for any number of questions. Pure.

A host with many deployments is asked many questions about one moment: what each of them could be
updated to, and how far each of its rollbacks is. What they have in common is computed once; what a
question changes (its own enclaves gone, its lease redeemed) is taken off that. Where somebody
inherits from what is taken off, `ledger.room` computes anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

from agent.capacity.ledger import (
    Holder,
    Room,
    holders_of,
    occupied,
    room,
    room_beside,
    sums_of,
)
from agent.capacity.listeners import Listeners
from agent.capacity.supply import Holding, HostSupply
from agent.model.clock import Instant
from agent.model.ids import EnclaveId, LeaseId
from agent.model.lease import Claim, Lease
from agent.model.resources import Amounts


class Accounts:
    """What the host has and who holds it, of one moment. What it was given is never changed."""

    def __init__(
        self,
        supply: HostSupply,
        *,
        holdings: Sequence[Holding] = (),
        claims: Sequence[Claim] = (),
        leases: Sequence[Lease] = (),
        now: Instant,
    ) -> None:
        self.supply = supply
        self.holdings = holdings
        self.claims = claims
        self.leases = leases
        self.now = now
        self._rooms: dict[tuple[frozenset[EnclaveId], LeaseId | None], Room] = {}

    @cached_property
    def listeners(self) -> Listeners:
        """Who has which listener."""
        return Listeners(self.supply, self.claims)

    @cached_property
    def addresses(self) -> Mapping[EnclaveId, str | None]:
        """Of each enclave."""
        return {holding.enclave: holding.address for holding in self.holdings}

    @property
    def free(self) -> Amounts:
        """What can be given away now; never negative."""
        return self.room().amounts.at_least_zero()

    def room(self, *, gone: Collection[EnclaveId] = (), redeemed: LeaseId | None = None) -> Room:
        """As `ledger.room`."""
        key = (frozenset(gone), redeemed)
        if key not in self._rooms:
            found = self._summed.without(key[0]) if redeemed is None else None
            self._rooms[key] = found or room(
                self.supply, self.holdings, self.leases, self.now, gone=gone, redeemed=redeemed
            )
        return self._rooms[key]

    @cached_property
    def _summed(self) -> _Summed:
        return _Summed(self.supply, self.holdings, self.leases, self.now)


class _Summed:
    """All holders' sums, from which enclaves can be taken off one by one."""

    def __init__(
        self,
        supply: HostSupply,
        holdings: Sequence[Holding],
        leases: Sequence[Lease],
        now: Instant,
    ) -> None:
        holders = holders_of(supply, holdings, leases, now)
        self._supply = supply
        self._sums = sums_of(supply, holders)
        self._devices = Counter(device for holder in holders for device in holder.devices)
        self._used = Counter(holder.address for holder in holders)
        self._occupied = occupied(supply, holdings)
        self._own = {holder.enclave: holder for holder in holders if holder.enclave}
        heirs = [holder for holder in holders if holder.replaces]
        self._entangled = {enclave for holder in heirs for enclave in holder.replaces}
        self._entangled |= {holder.enclave for holder in heirs if holder.enclave}

    def without(self, gone: Collection[EnclaveId]) -> Room | None:
        """None: one of them inherits from another, or another from it."""
        ended = self._own.keys() & gone
        if self._entangled & ended:
            return None
        leaving: list[Holder] = [self._own[enclave] for enclave in ended]
        devices = self._devices - Counter(one for holder in leaving for one in holder.devices)
        used = self._used - Counter(holder.address for holder in leaving)
        return room_beside(
            self._supply,
            self._sums - sums_of(self._supply, leaving),
            ended,
            frozenset(devices),
            used.keys() | self._occupied,
        )
