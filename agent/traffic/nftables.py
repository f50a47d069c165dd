"""The nftables data plane: the kernel carries the connections, one transaction switches them.

Client addresses are kept; only connections from a loopback address are masqueraded, because no
guest can answer one. Everything that a restart of the agent needs is read back from the kernel.
A writer that lost its turn (an nft whose agent was killed) cannot undo a newer order: replacing
an order deletes the old generation's own key, and a transaction whose key is gone fails whole.

What others do to the table is put back by `mend`, in one transaction, from the orders that were
given; `nftables_watch.py` hears when there is reason to. Links that forward for our sake alone are
fenced before they do.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.config_limits import DEFAULT_LIMITS, LimitsConfig
from agent.errors import describe
from agent.host.commands import CommandError, RunCommand, run_command
from agent.host.files import StorageError
from agent.model.egress import NO_POLICY, EgressPolicy, GuestEgress, parse_allowed
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic import conntrack, resetting
from agent.traffic.census import Census
from agent.traffic.egress import EgressTable
from agent.traffic.egress_rules import EgressRules, open_at_host
from agent.traffic.flow_limits import FlowLimits
from agent.traffic.holding import NoHolder, PortHolder
from agent.traffic.nftables_checks import check, check_taken, refusal
from agent.traffic.nftables_former import FormerTables, none_known
from agent.traffic.nftables_kernel import (
    NftablesKernel,
    RefusedTransactionError,
    egress_table,
    limits_table,
)
from agent.traffic.nftables_ports import NftablesPorts
from agent.traffic.nftables_reset import Resets
from agent.traffic.nftables_rules import (
    Base,
    Key,
    SetElement,
    change,
    elements_of,
    fence,
)
from agent.traffic.nftables_view import NftablesView
from agent.traffic.port import (
    Refused,
    RouteOrder,
    StaleGenerationError,
    TrafficError,
    Unheld,
)
from agent.traffic.sysctls import Switches, Sysctls

log = logging.getLogger(__name__)


async def probe_nftables(run: RunCommand = run_command) -> str | None:
    """Why this host cannot have the nftables data plane, or None. Changes nothing.

    The kernel is given our whole table to check and to throw away.
    """
    at_host = open_at_host((1,))
    table = "enclave_agent_probe"
    base = Base(table, "probe", "192.0.2.0/24", at_host, hairpin=True)
    policy = EgressPolicy(mode=GuestEgress.INTERNET, allow=(parse_allowed("192.0.2.0/24:1"),))
    egress = EgressRules(egress_table(table), "probe", at_host, policy)
    text = base.text() + egress.text((ipaddress.IPv4Network("192.0.2.0/24"),))
    try:
        result = await run(["nft", "-c", "-f", "-"], stdin=text.encode())
    except CommandError as error:
        return describe(error)
    if result.status != 0:
        return f"nft cannot make the table that is needed: {result.complaint}"
    return conntrack.missing() or resetting.missing()


@dataclass(frozen=True, slots=True)
class Mended:
    """What `mend` found and did. `deployments`: whose orders were not in force as given.

    `rules`: whether our rules were not what they should be. `former_tables`: those of an earlier
    configuration that had come back. `turned_on`: links that forwarded and did not any more.
    `routes_for_others`: whether the host forwards for whoever asks.
    """

    deployments: tuple[DeploymentName, ...] = ()
    rules: bool = False
    former_tables: tuple[str, ...] = ()
    turned_on: tuple[str, ...] = ()
    routes_for_others: bool = False


class NftablesTraffic:
    """Tables of our own. `state_file` holds the sysctls as they were before us.

    Beside it the names of our tables are recorded. `former_tables`: names, as far as they can be
    told, of tables that this agent made under an earlier configuration.
    """

    kind = "nftables"

    def __init__(
        self,
        bridge: str,
        subnet: str,
        host_ports: tuple[int, ...],
        *,
        state_file: Path,
        egress: EgressPolicy = NO_POLICY,
        hairpin: bool = False,
        table: str = "enclave_agent",
        limits: LimitsConfig = DEFAULT_LIMITS,
        holder: PortHolder | None = None,
        former_tables: Callable[[], Awaitable[Sequence[str]]] = none_known,
        run_command: RunCommand = run_command,
    ) -> None:
        """`host_ports`: TCP ports of the host that guests may reach, whatever the policy."""
        at_host = open_at_host(host_ports)
        self._base = Base(table, bridge, subnet, at_host, hairpin)
        self._limits = FlowLimits(limits_table(table), bridge, subnet, limits, run_command)
        rules = EgressRules(egress_table(table), bridge, at_host, egress)
        self.egress = EgressTable(rules, run_command)
        self._sysctls = Sysctls(bridge, state_file)
        record = state_file.with_name("tables.json")
        self._former = FormerTables(table, record, former_tables, run_command)
        self._kernel = NftablesKernel(self._base, run_command)
        connections = conntrack.KernelConnections()
        self._census = Census(connections)
        self._ports = NftablesPorts(table, holder or NoHolder(), self._kernel.commit)
        self._lock = asyncio.Lock()
        self._resets = Resets(table, self._kernel, self._lock, connections)
        self._last: NftablesView | None = None  # what the kernel held when we last looked or wrote
        self._orders: dict[
            DeploymentName, RouteOrder
        ] = {}  # as they were given, or found at start
        self._forwarding: frozenset[str] = frozenset()  # links that did when we last looked

    async def start(self) -> None:
        """Turn on forwarding; bring an older table's rules up to date around its elements."""
        async with self._lock:
            await self._former.note()
            former = await self._former.orders()
            view = await self._look()
            known = {**former, **view.known}
            if not view.intact or former:
                await self._rewrite(list(known.values()))
            else:
                await self.egress.ensure()
                if view.resetting:
                    await self._kernel.commit(f"flush set inet {self._base.table} resetting\n")
            self._orders = known
            await self._former.remove()
            await self._have_forwarding()
        await self._limits.ensure()

    async def apply(self, order: RouteOrder) -> None:
        """One transaction. What the kernel holds is read only if the last look proves stale."""
        check(order)
        async with self._lock:
            self._resets.begin_anew(end for one in order.bindings for end in one.endpoints)
            view = self._last
            if view is None or not view.intact or view.known.get(order.deployment) == order:
                view = await self._look()
            try:
                await self._put(view, order)
            except RefusedTransactionError:
                await self._put(await self._look(), order)
            self._orders[order.deployment] = order
            await self._have_forwarding()
            if self._last is not None:
                await self._ports.keep_more(self._last, self._wanted(self._last), order)

    async def remove(self, deployment: DeploymentName) -> None:
        async with self._lock:
            self._orders.pop(deployment, None)
            view = await self._look()
            if deployment not in view.known:
                return
            if view.intact:
                await self._write(change(self._base.table, view.owned_by(deployment), {}))
            else:
                await self._rewrite(view.others(deployment))
            view = await self._look()
            await self._ports.keep(view, self._wanted(view))

    async def observe(self) -> Mapping[DeploymentName, RouteOrder]:
        """Nothing, if the rules in the kernel are not exactly ours."""
        async with self._lock:
            view = await self._look()
        await self._limits.ensure()
        return dict(view.known) if view.intact else {}

    async def hold_ports(self) -> Mapping[Listen, Unheld]:
        """By what was ordered and what was seen last."""
        async with self._lock:
            view = self._last or await self._look()
            return await self._ports.keep(view, self._wanted(view))

    def _wanted(self, view: NftablesView) -> list[RouteOrder]:
        """Every order that is known, whatever another program made of it in the kernel."""
        return list({**view.known, **self._orders}.values())

    async def mend(self) -> Mended:
        """Put back what another changed, all in one transaction.

        An order in the kernel that is newer than what we know of is left in force.
        """
        async with self._lock:
            view = await self._look()
            orders = {**self._orders, **_newer(view.known, self._orders)}
            broken = tuple(name for name, order in orders.items() if view.known.get(name) != order)
            strange = view.known.keys() - orders.keys()
            former = await self._former.remove()
            if not view.intact or broken or strange:
                await self._rewrite(list(orders.values()))
            else:
                await self.egress.ensure()
            self._orders = orders
            known = self._forwarding
            switches = await self._have_forwarding()
            await self._limits.ensure()
            return Mended(
                deployments=tuple(orders) if not view.intact else broken,
                rules=not view.intact or bool(strange),
                former_tables=tuple(former),
                turned_on=tuple(sorted(known & switches.off)),
                routes_for_others=switches.routes_for_others,
            )

    async def connections(self, endpoint: Endpoint) -> int:
        return await self._census.connections(endpoint)

    async def reset(self, endpoint: Endpoint) -> int:
        """Returns when every client was sent its reset, or is past reach (two seconds).

        A client that could not be reached gets its reset with the next segment that it sends: its
        flow is forgotten then, and the host answers for what it does not know.
        """
        return await self._resets.reset(endpoint)

    async def refused(self) -> Refused:
        """By guests' addresses."""
        counts = await self._limits.refused()
        return Refused(counts=counts, unlimited=self._limits.missing)

    def refusal(self, listen: Listen) -> str | None:
        return refusal(listen)

    async def close(self) -> None:
        """The tables and the ports' holder stay."""
        await self._ports.close()

    async def restore(self) -> None:
        """Uninstall: delete our tables, put the sysctls back. Idempotent."""
        async with self._lock:
            self._orders.clear()
            await self._write(self._base.removal() + self.egress.removal())
            await self._ports.shutdown()
            await self._limits.remove()
            await self._former.remove()
            self._former.forget()
            try:
                self._sysctls.restore()
            except (OSError, StorageError) as error:
                raise TrafficError("the sysctls could not be restored") from error

    async def _put(self, view: NftablesView, order: RouteOrder) -> None:
        before = view.known.get(order.deployment)
        if before is not None and before.generation > order.generation:
            raise StaleGenerationError(
                f"generation {order.generation} of {order.deployment} is older than "
                f"{before.generation}, which is in force"
            )
        check_taken(view, order)
        new = elements_of(order)
        if not view.intact:
            await self._rewrite([*view.others(order.deployment), order])
            return
        old = view.owned_by(order.deployment)
        if text := change(self._base.table, old, new):
            await self._write(text)
        rest = {key: value for key, value in view.elements.items() if key not in old}
        self._last = NftablesView(
            intact=True,
            elements={**rest, **new},
            known={**view.known, order.deployment: order},
            yielded=view.yielded,
            fenced=view.fenced,
        )

    async def _rewrite(self, orders: Sequence[RouteOrder]) -> None:
        """The tables of the routes anew, with these orders, in one transaction."""
        elements: dict[Key, SetElement] = {}
        for order in orders:
            elements.update(elements_of(order))
        table, switches = self._base.table, self._look_at_switches()
        await self.egress.ensure()  # first: what a guest opens needs its mark
        await self._write(
            self._base.text()
            + change(table, {}, elements)
            + fence(table, (), switches.fenced)
            + self._resets.statement()
        )
        known = {order.deployment: order for order in orders}
        self._last = NftablesView(
            intact=True, elements=elements, known=known, fenced=switches.fenced
        )

    async def _have_forwarding(self) -> Switches:
        """Fence, then turn on. Where the host forwards for others there is no fence."""
        switches = self._look_at_switches()
        fenced = self._last.fenced if self._last is not None else (await self._look()).fenced
        if text := fence(self._base.table, fenced, switches.fenced):
            try:
                await self._write(text)
            except RefusedTransactionError:
                await self._write(
                    fence(self._base.table, (await self._look()).fenced, switches.fenced)
                )
            await self._look()
        try:
            self._sysctls.turn_on(switches.off)
        except (OSError, StorageError) as error:
            raise TrafficError("forwarding could not be turned on") from error
        if not switches.routes_for_others:
            self._forwarding = switches.on | switches.off
        return switches

    def _look_at_switches(self) -> Switches:
        try:
            return self._sysctls.look()
        except (OSError, StorageError) as error:
            raise TrafficError("the sysctls cannot be read") from error

    async def _look(self) -> NftablesView:
        self._last = await self._kernel.look()
        return self._last

    async def _write(self, text: str) -> None:
        """Change orders or rules. However it ends, our last look is void."""
        self._last = None
        await self._kernel.commit(text)


def _newer(
    found: Mapping[DeploymentName, RouteOrder], given: Mapping[DeploymentName, RouteOrder]
) -> dict[DeploymentName, RouteOrder]:
    """Orders of a later generation than those that we gave."""
    return {
        name: order
        for name, order in found.items()
        if name in given and order.generation > given[name].generation
    }
