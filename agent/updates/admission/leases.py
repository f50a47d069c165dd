"""Leases on request, and their end when the time is up.

A promise is decided as an update would be, in the transaction that records it, so that two that
ask at once cannot both be given the last slot. It reserves capacity and nothing else: listeners,
variables and secrets are looked at when it is spent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from agent.capacity.supply import HostSupply, Question, charged
from agent.host.clock import Clock
from agent.host.wake import Wake
from agent.model.ids import DeploymentName, LeaseId, new_lease_id
from agent.model.lease import Lease
from agent.model.reasons import Strategy
from agent.model.resources import Demand
from agent.releases.port import Releases
from agent.store.port import Reader, Store, Transaction
from agent.updates.admission.judging import judge
from agent.updates.admission.launchable import Launchable, any_launch
from agent.updates.admission.lease_rows import due, expire, find, give_back, record
from agent.updates.admission.lookup import current
from agent.updates.admission.requests import resolve
from agent.updates.admission.rows import Terms
from agent.updates.errors import FieldError, RefusedError, UnknownNameError
from agent.updates.orders import Caller, NewLease

_LOOK_AGAIN_S = 10.0  # timers stand still while the host is suspended; deadlines do not


class Leasing:
    """Implements `agent.updates.port.Leases`. `changed` is told whenever one comes or goes."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        releases: Releases,
        *,
        supply: Callable[[], Awaitable[HostSupply]],
        changed: Callable[[], None],
        launchable: Launchable = any_launch,
    ) -> None:
        self._store = store
        self._clock = clock
        self._releases = releases
        self._supply = supply
        self._changed = changed
        self._launchable = launchable
        self._wakeup = Wake()

    async def grant(self, wanted: NewLease, caller: Caller) -> Lease:
        """Promise capacity. Raises RefusedError, FieldError, UnknownNameError, ConflictError."""
        demand = await self._demand(wanted)
        terms = Terms(supply=await self._supply(), now=self._clock.now(), caller=caller)
        lease = await self._store.transact(lambda tx: admit_lease(tx, wanted, demand, terms))
        self._told()
        return lease

    async def get(self, lease_id: LeaseId) -> Lease:
        """One that holds. Raises UnknownNameError, LeaseExpiredError."""
        now = self._clock.now()
        return await self._store.read(lambda tx: find(tx, lease_id, now))

    async def give_back(self, lease_id: LeaseId, caller: Caller) -> None:
        """End it before its time. Raises UnknownNameError, LeaseExpiredError."""
        now = self._clock.now()
        await self._store.transact(lambda tx: give_back(tx, lease_id, now, caller))
        self._told()

    async def made_by(self, matches: Callable[[str | None], bool]) -> Lease | None:
        """The lease that a marked request made, if it was made and still is there."""
        rows = await self._store.read(lambda tx: tx.leases())
        return next((row for row in rows if matches(row.request)), None)

    async def keep(self) -> None:
        """End leases when their time is up, for ever. Raises StoreError: call it again."""
        while True:
            seen = self._wakeup.count
            now = self._clock.now()
            if await self._store.read(lambda tx: due(tx, now)):  # noqa: B023 - run at once
                await self._store.transact(lambda tx: expire(tx, now))  # noqa: B023 - run at once
                self._changed()
            await self._wakeup.beyond(seen, await self._seconds_to_the_next())

    async def _seconds_to_the_next(self) -> float:
        rows, now = await self._store.read(lambda tx: tx.leases()), self._clock.now()
        left = [row.expires_at.boottime_s - now.boottime_s for row in rows if not row.expired]
        return max(0.0, min([_LOOK_AGAIN_S, *left]))

    def _told(self) -> None:
        self._wakeup.notify()
        self._changed()

    async def _demand(self, wanted: NewLease) -> Demand:
        """Of a deployment's release, or the bare one. A deployment need not be there yet."""
        name = wanted.deployment
        if wanted.demand is not None:
            if name is not None or wanted.tag is not None:
                raise FieldError("demand", "either a demand, or a deployment with a tag")
            return wanted.demand
        if name is None:
            raise FieldError("deployment", "a deployment or a demand is needed")
        meant = await self._store.read(lambda tx: _release_of(tx, name, wanted.tag))
        release = await resolve(
            self._releases, meant.repo, meant.tag, self._launchable, meant.digest
        )
        return release.demand


class _Meant(NamedTuple):
    """A release; with a digest, its contents as they are recorded."""

    repo: str
    tag: str
    digest: str | None = None


def _release_of(tx: Reader, name: DeploymentName, tag: str | None) -> _Meant:
    if tx.deployment(name) is None:
        if tag is None:
            raise UnknownNameError(f"no deployment {name}; for one to come, say its tag")
        return _Meant(name, tag)
    revision = current(tx, name)
    if tag is None:
        return _Meant(revision.repo, revision.tag, revision.release_digest)
    return _Meant(revision.repo, tag)


def admit_lease(tx: Transaction, wanted: NewLease, demand: Demand, terms: Terms) -> Lease:
    """Decide and record. Raises RefusedError with the reasons."""
    name, now = wanted.deployment, terms.now
    demand = charged(demand, terms.supply)
    expire(tx, now)
    asked = Question(
        demand=demand,
        deployment=name,
        own=tuple(row.id for row in tx.enclaves(name)) if name else (),
        running_update=name is not None and tx.running_update(name) is not None,
        insisted=wanted.strategy,
    )
    admission = judge(tx, asked, terms.supply, now)
    if admission.grant is None:
        raise RefusedError(admission.decision)
    lease = Lease(
        id=new_lease_id(),
        holder=terms.caller.name,
        deployment=name,
        strategy=Strategy(admission.decision.strategy),
        demand=demand,
        gpus=admission.grant.gpus,
        address=admission.grant.address,
        created_at=now,
        expires_at=now.plus(wanted.ttl_s),
        request=terms.caller.request,
    )
    record(tx, lease, admission.grant, terms.caller)
    return lease
