"""After a restore: the VMs that run though the restored store does not know them.

The rule elsewhere is short: what no row knows is stopped (no VM runs that the store does not
know). After a restore it is the store that is behind, and such a VM may be the one that serves. So
here, until the agent has settled all of them once:

- A row whose VM was launched anew since the backup takes that launch over: it is the same
  enclave, with the same revision and address.
- A VM of which no row knows is recorded by an event, shown as a problem, and keeps its address. If
  the data plane sends to it, that route is *held*: it stays as it is in the data plane, whatever
  the rows say, until what they say is healthy (once one served, never zero on purpose), or the
  deployment is to stop. Then the route is applied and, a drain later, the VM is stopped.
- It is stopped at once if nobody is sent to it, and if its address is that of a row: no address
  belongs to two.
- A route of a deployment that the store does not know at all is held until it is deployed again;
  `restore-store --stop-unrecorded` ends that wait.

A restart of the agent begins this anew from what it sees.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent.enclaves.port import Enclaves, RestoredOrphan, VmPhase
from agent.errors import AgentError, describe
from agent.host.clock import Clock
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.resources import Listen
from agent.model.revision import Deployment, Wish
from agent.probes.port import Probes
from agent.store.port import Reader, Store, Transaction
from agent.store.restore import RESTORED
from agent.traffic.port import RouteOrder, Traffic
from agent.updates.engine.wakeups import Wakeups
from agent.updates.planner.types import Policy
from agent.updates.snapshot.publisher import SnapshotPublisher

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_WHY = "runs, and the restored store does not know it"


class RestoredOrphans:
    """Knows which routes are held, and stops what nobody needs any more."""

    def __init__(
        self,
        *,
        store: Store,
        enclaves: Enclaves,
        probes: Probes,
        traffic: Traffic,
        publisher: SnapshotPublisher,
        clock: Clock,
        policy: Policy,
        wakeups: Wakeups,
    ) -> None:
        self._store = store
        self._enclaves = enclaves
        self._probes = probes
        self._traffic = traffic
        self._publisher = publisher
        self._clock = clock
        self._policy = policy
        self._wakeups = wakeups
        self._held: dict[DeploymentName, RouteOrder] = {}  # as they are in force
        self._spared: dict[EnclaveId, RestoredOrphan] = {}
        self._not_before: dict[EnclaveId, Instant] = {}
        self._restored = False

    async def find(self, rows: Sequence[Enclave]) -> Sequence[RestoredOrphan]:
        """Before the VMs are adopted: amend the rows, and say which VMs are to be spared."""
        self._restored = await self._store.read(lambda tx: tx.meta(RESTORED)) == "yes"
        if not self._restored:
            return ()
        by_id = {row.id: row for row in rows}
        found = self._enclaves.find_unrecorded(rows)
        again = [one for one in found if one.enclave in by_id and one.launch_uuid is not None]
        strange = [one for one in found if one.enclave not in by_id]

        def record(tx: Transaction) -> None:
            for one in again:
                assert one.launch_uuid is not None
                row = msgspec.structs.replace(
                    by_id[one.enclave], launch_uuid=one.launch_uuid, process=one.process
                )
                tx.put_enclave(row)
                tx.append(_event(one, "launched since", deployment=row.deployment))
            for one in strange:
                tx.append(_event(one, "unrecorded"))

        if again or strange:
            await self._store.transact(record)
        taken = {row.address for row in rows}
        spared = [one for one in strange if one.address not in taken]
        self._spared = {one.enclave: one for one in spared}
        return spared

    def hold(
        self,
        wanted: Mapping[DeploymentName, RouteOrder],
        in_force: Mapping[DeploymentName, RouteOrder],
        rows: Sequence[Enclave],
    ) -> None:
        """Once the VMs are adopted: hold every route that sends to a VM, but not as recorded."""
        if not self._restored:
            return
        live = {one.address for one in self._spared.values()}  # None: it may be any
        live |= {row.address for row in rows if self._runs(row.id)}
        for name, order in in_force.items():
            sent_to = _addresses(order)
            recorded = _addresses(wanted[name]) if name in wanted else frozenset()
            if sent_to and sent_to != recorded and (sent_to <= live or None in live):
                self._held[name] = order
                log.warning("route held as it is", extra={"deployment": name})

    def listeners(self) -> frozenset[Listen]:
        """Those of held routes: taken by the data plane, for whoever is deployed there again."""
        orders = self._held.values()
        return frozenset(binding.listen for order in orders for binding in order.bindings)

    def holds(self, name: DeploymentName) -> bool:
        """Whether the data plane is not to be compared with the rows of this deployment."""
        return name in self._held

    def keeps(self, deployment: Deployment) -> bool:
        """Whether its recorded route is not to be applied yet."""
        if deployment.name not in self._held or deployment.wish is not Wish.RUN:
            return False
        target = deployment.route.enclave
        health = self._probes.view(target) if target else None
        return target is None or not (health and health.healthy and self._runs(target))

    async def settle(self, applied: Callable[[DeploymentName], None]) -> None:
        """Let go of routes and stop VMs as it becomes right; returns when there is none left.

        `applied` is told of each route that is to be applied now.
        """
        while self._restored:
            try:
                await self._let_go(applied)
                await self._stop_idle()
                if not self._held and not self._spared:
                    await self._store.transact(lambda tx: tx.set_meta(RESTORED, "no"))
                    self._restored = False
            except AgentError as error:
                log.warning("restored store not settled yet: %s", describe(error))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _let_go(self, applied: Callable[[DeploymentName], None]) -> None:
        if not self._held:
            return
        rows = await self._store.read(_deployments)
        in_force = await self._traffic.observe()
        for name, held in list(self._held.items()):
            sent_to = _addresses(held)
            moved = name not in in_force or _addresses(in_force[name]) != sent_to
            if not moved and (name not in rows or self.keeps(rows[name])):
                continue
            del self._held[name]
            until = self._clock.now().plus(self._policy.drain_s)
            for one in self._spared.values():
                if one.address is None or one.address in sent_to:
                    self._not_before[one.enclave] = until
            applied(name)
            self._wakeups.of(name).notify()

    async def _stop_idle(self) -> None:
        needed = frozenset[str]().union(*map(_addresses, self._held.values()))
        now = self._clock.now()
        for one in list(self._spared.values()):
            not_before = self._not_before.get(one.enclave)
            serves = one.address in needed or (one.address is None and bool(needed))
            if serves or (not_before and not now.reached(not_before)):
                self._tell(one)
                continue
            grace_s = 0.0 if one.deaf else self._policy.stop_grace_s
            await self._enclaves.remove(one.enclave, grace_s)
            await self._store.transact(lambda tx, one=one: tx.append(_event(one, "gone")))  # type: ignore[misc]
            del self._spared[one.enclave]
            self._publisher.clear_problem(f"unrecorded:{one.enclave}")

    def _tell(self, one: RestoredOrphan) -> None:
        held = self._held.items()
        served = [str(name) for name, order in held if one.address in _addresses(order)]
        name = ", ".join(served)
        self._publisher.raise_problem(
            f"unrecorded:{one.enclave}",
            code="unrecorded_enclave",
            severity="warning",
            detail=f"enclave {one.enclave} {_WHY}; clients of {name or 'nobody'} are sent to it",
            mend=f"it is stopped when {name} is served as recorded; if it is not, deploy it again"
            if name
            else "it is stopped when its drain is over",
        )

    def _runs(self, enclave_id: EnclaveId) -> bool:
        return self._enclaves.view(enclave_id).phase is VmPhase.RUNNING


def _event(one: RestoredOrphan, to: str, deployment: DeploymentName | None = None) -> EventDraft:
    return EventDraft(
        kind="enclave", enclave=one.enclave, deployment=deployment, to=to, reason=_WHY
    )


def _addresses(order: RouteOrder) -> frozenset[str]:
    return frozenset(end.address for binding in order.bindings for end in binding.endpoints)


def _deployments(tx: Reader) -> dict[DeploymentName, Deployment]:
    return {row.name: row for row in tx.deployments()}
