"""What the data plane has in force, compared with what was decided; and who is connected.

Read from the data plane itself: what somebody else edited or lost there is seen, and mended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from agent.errors import AgentError
from agent.model.enclave import Enclave, Lifecycle, StopStage
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.resources import Listen
from agent.model.update import Draining, Soaking
from agent.store.port import Reader, Store
from agent.traffic.port import RouteOrder, Traffic, Unheld
from agent.updates.engine.executor import Executor
from agent.updates.engine.refusals import Refusals
from agent.updates.engine.wakeups import Wakeups
from agent.updates.snapshot.rows import Rows

_COUNT_EVERY = 3  # looks while nothing changes: the kernel walks its whole table for a count


class DataPlaneWatch:
    """Corrects `executor.applied`; `connections` has what was counted last.

    `unheld`: listeners that could not be kept from other programs at the last look.
    `unlimited`: why no tenant is limited, or None.
    """

    def __init__(
        self,
        store: Store,
        traffic: Traffic,
        executor: Executor,
        wakeups: Wakeups,
        holds: Callable[[DeploymentName], bool],
    ) -> None:
        self._store = store
        self._traffic = traffic
        self._executor = executor
        self._wakeups = wakeups
        self._holds = holds
        self.connections: dict[EnclaveId, int] = {}
        self.unheld: Mapping[Listen, Unheld] = {}
        self._refusals = Refusals()
        self.unlimited: str | None = None
        self._quiet = 0  # looks since something changed

    def refused(self, name: DeploymentName) -> dict[str, int]:
        """Limit → how many connections or packets of a deployment."""
        return dict(self._refusals.by_deployment.get(name, {}))

    async def look(self, deployments: Iterable[Rows], *, changed: bool) -> None:
        """Compare; count, too, if something changed, and now and then."""
        self._quiet = 0 if changed else self._quiet + 1
        if self._quiet % _COUNT_EVERY == 0:
            await self.count(deployments)
        await self.compare()

    async def compare(self) -> None:
        """Have `applied` true, and forget in the data plane what is no deployment any more.

        A route that is applied at this very moment may be applied once more: that is harmless.
        """
        applied = self._executor.applied
        in_force = await self._traffic.observe()
        wanted = await self._store.read(self.orders)
        for name in in_force.keys() - wanted.keys():
            if self._holds(name):
                continue
            if await self._store.read(lambda tx, name=name: tx.deployment(name)) is None:  # type: ignore[misc]
                await self._traffic.remove(name)
        for name in wanted.keys() | applied.keys():
            if self._holds(name):
                continue
            order = wanted.get(name)
            if order is not None and order == in_force.get(name):
                applied[name] = order.generation
            elif applied.pop(name, None) is not None:
                self._wakeups.of(name).notify()
        self.unheld = await self._traffic.hold_ports()

    def orders(self, tx: Reader) -> dict[DeploymentName, RouteOrder]:
        """The recorded routes."""
        orders = {row.name: self._executor.order(tx, row.name) for row in tx.deployments()}
        return {name: order for name, order in orders.items() if order is not None}

    async def count(self, deployments: Iterable[Rows]) -> None:
        """The connections of every enclave that has any, and what every deployment was refused."""
        known = list(deployments)
        await self._count_refused(known)
        running = [
            (row, revision)
            for rows in known
            for row in rows.enclaves
            if _delivers(row) and (revision := rows.revision(row.revision))
        ]
        counts = await asyncio.gather(*(self._executor.connections(*one) for one in running))
        self.connections = {row.id: count for (row, _), count in zip(running, counts, strict=True)}

    async def _count_refused(self, deployments: Iterable[Rows]) -> None:
        """A tenant is a deployment, or one of its guests."""
        tenants: dict[str, DeploymentName] = {}
        for rows in deployments:
            name = rows.deployment.name
            tenants |= dict.fromkeys((name, *(row.address for row in rows.enclaves)), name)
        said = await self._traffic.refused()
        self.unlimited = said.unlimited
        self._refusals.take(said.counts, tenants)
        self._refusals.forget_others(set(tenants.values()))

    async def count_draining(self, rows: Rows) -> dict[EnclaveId, int | None]:
        """A drain ends when nothing is open any more: count now, not ten seconds ago.

        Only what gave its traffic away by these rows: until then there may always be one more.
        """
        counts: dict[EnclaveId, int | None] = {}
        update = rows.update
        if update is None or not isinstance(update.state, Soaking | Draining):
            return counts
        for row in rows.enclaves:
            revision = rows.revision(row.revision)
            if row.id != update.from_enclave or revision is None:
                continue
            try:
                count = await self._executor.connections(row, revision)
                counts[row.id] = self.connections[row.id] = count
            except AgentError:
                counts[row.id] = None  # the drain waits for its deadline
                self.connections.pop(row.id, None)
        return counts


def _delivers(row: Enclave) -> bool:
    """Whether what is open to it is delivered: one that is stopped finishes first."""
    finishes = row.stopping is not None and row.stopping.stage is StopStage.FINISH
    return finishes or row.lifecycle is Lifecycle.RUNNING
