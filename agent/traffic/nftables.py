"""The nftables data plane: the kernel carries the connections, one transaction switches them.

Client addresses are kept; only connections from a loopback address are masqueraded, because no
guest can answer one. Everything that a restart of the agent needs is read back from the kernel.
A writer that lost its turn (an nft whose agent was killed) cannot undo a newer order: replacing
an order deletes the old generation's own key, and a transaction whose key is gone fails whole.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.config_limits import DEFAULT_LIMITS, LimitsConfig
from agent.errors import describe
from agent.host.commands import CommandError, CompletedCommand, RunCommand, run_command
from agent.host.files import StorageError
from agent.host.threads import finish_in_thread
from agent.model.egress import NO_POLICY, EgressPolicy, GuestEgress, parse_allowed
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName, parse_deployment_name
from agent.model.resources import Listen
from agent.traffic import conntrack, resetting
from agent.traffic.census import Census
from agent.traffic.egress import EgressTable
from agent.traffic.egress_rules import EgressRules, open_at_host
from agent.traffic.flow_limits import FlowLimits
from agent.traffic.holding import NoHolder, PortHolder
from agent.traffic.nftables_ports import NftablesPorts, check_taken
from agent.traffic.nftables_rules import Base, Key, SetElement, change, elements_of, endpoint_key
from agent.traffic.nftables_view import NftablesView, read
from agent.traffic.port import (
    Refused,
    RouteOrder,
    StaleGenerationError,
    TrafficError,
    Unheld,
)
from agent.traffic.sysctls import Sysctls

_RESET_ROUNDS = 20
_RESET_ROUND_S = 0.1


async def probe_nftables(run: RunCommand = run_command) -> str | None:
    """Why this host cannot have the nftables data plane, or None. Changes nothing.

    The kernel is given our whole table to check and to throw away.
    """
    at_host = open_at_host((1,))
    base = Base("enclave_agent_probe", "probe", "192.0.2.0/24", at_host, hairpin=True)
    policy = EgressPolicy(mode=GuestEgress.INTERNET, allow=(parse_allowed("192.0.2.0/24:1"),))
    egress = EgressRules("egress_enclave_agent_probe", "probe", at_host, policy)
    text = base.text() + egress.text((ipaddress.IPv4Network("192.0.2.0/24"),))
    try:
        result = await run(["nft", "-c", "-f", "-"], stdin=text.encode())
    except CommandError as error:
        return describe(error)
    if result.status != 0:
        return f"nft cannot make the table that is needed: {result.complaint}"
    return conntrack.missing() or resetting.missing()


class NftablesTraffic:
    """Tables of our own. `state_file` holds the sysctls as they were before us."""

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
        run_command: RunCommand = run_command,
    ) -> None:
        """`host_ports`: TCP ports of the host that guests may reach, whatever the policy."""
        at_host = open_at_host(host_ports)
        self._base = Base(table, bridge, subnet, at_host, hairpin)
        self._limits = FlowLimits(f"{table}_limits", bridge, subnet, limits, run_command)
        self.egress = EgressTable(
            EgressRules(f"egress_{table}", bridge, at_host, egress), run_command
        )
        self._sysctls = Sysctls(bridge, state_file)
        self._run = run_command
        self._census = Census(run_command)
        self._ports = NftablesPorts(table, holder or NoHolder(), self._commit)
        self._lock = asyncio.Lock()
        self._resetting = asyncio.Lock()
        self._last: NftablesView | None = None  # what the kernel held when we last looked or wrote
        self._parsed: tuple[bytes, NftablesView] | None = (
            None  # a listing, and what was read in it
        )

    async def start(self) -> None:
        """Turn on forwarding; bring an older table's rules up to date around its elements."""
        async with self._lock:
            self._ensure_sysctls()
            view = await self._look()
            if not view.intact:
                await self._rewrite(list(view.known.values()))
            else:
                await self.egress.ensure()
                if view.resetting:
                    await self._commit(f"flush set inet {self._base.table} resetting\n")
        await self._limits.ensure()

    async def apply(self, order: RouteOrder) -> None:
        """One transaction. What the kernel holds is read only if the last look proves stale."""
        self._check(order)
        async with self._lock:
            self._ensure_sysctls()
            view = self._last
            if view is None or not view.intact or view.known.get(order.deployment) == order:
                view = await self._look()
            try:
                await self._put(view, order)
            except _RefusedTransactionError:
                await self._put(await self._look(), order)
            if self._last is not None:
                await self._ports.keep_more(self._last, order)

    async def remove(self, deployment: DeploymentName) -> None:
        async with self._lock:
            view = await self._look()
            if deployment not in view.known:
                return
            if view.intact:
                await self._write(change(self._base.table, view.owned_by(deployment), {}))
            else:
                await self._rewrite(view.others(deployment))
            await self._ports.keep(await self._look())

    async def observe(self) -> Mapping[DeploymentName, RouteOrder]:
        """Nothing, if the rules in the kernel are not exactly ours."""
        async with self._lock:
            view = await self._look()
        await self._limits.ensure()
        return dict(view.known) if view.intact else {}

    async def hold_ports(self) -> Mapping[Listen, Unheld]:
        """By what was seen last."""
        async with self._lock:
            return await self._ports.keep(self._last or await self._look())

    async def connections(self, endpoint: Endpoint) -> int:
        return await self._census.connections(endpoint)

    async def reset(self, endpoint: Endpoint) -> int:
        """Returns when every client was sent its reset, or is past reach (two seconds).

        A client that could not be reached gets its reset with the next segment that it sends: its
        flow is forgotten then, and the host answers for what it does not know.
        """
        element = f"inet {self._base.table} resetting {{ {endpoint_key(endpoint)} }}\n"
        async with self._resetting:
            flows = await conntrack.flows_to(endpoint, self._run)
            if not flows:
                await conntrack.forget(endpoint, (), self._run)
                return 0
            await self._commit(f"add element {element}")
            try:
                left = await self._reset_flows(endpoint, flows)
                await conntrack.forget(endpoint, left, self._run)
            finally:
                await asyncio.shield(self._commit(f"delete element {element}"))
            return len(flows)

    async def refused(self) -> Refused:
        """By guests' addresses."""
        counts = await self._limits.refused()
        return Refused(counts=counts, unlimited=self._limits.missing)

    def refusal(self, listen: Listen) -> str | None:
        if listen.is_ipv6:
            return (
                f"{listen} is an IPv6 address, which the nftables data plane does not serve: "
                "guests have IPv4 addresses only; use traffic.mode userspace"
            )
        return None

    async def close(self) -> None:
        """The table and the ports' holder stay."""
        await self._ports.close()

    async def restore(self) -> None:
        """Uninstall: delete our table, put the sysctls back. Idempotent."""
        async with self._lock:
            await self._write(self._base.removal() + self.egress.removal())
            await self._ports.shutdown()
            await self._limits.remove()
            try:
                self._sysctls.restore()
            except (OSError, StorageError) as error:
                raise TrafficError("the sysctls could not be restored") from error

    def _check(self, order: RouteOrder) -> None:
        """Nothing unchecked gets into the text that nft reads."""
        try:
            parse_deployment_name(order.deployment)
            for binding in order.bindings:
                ipaddress.ip_address(binding.listen.address)
                for endpoint in binding.endpoints:
                    ipaddress.IPv4Address(endpoint.address)
        except ValueError as error:
            raise TrafficError(f"the order of {order.deployment} is not valid") from error
        if order.domain is not None and not order.domain.isascii():
            raise TrafficError(f"the domain of {order.deployment} is not ASCII")
        if order.domain is not None and not set(order.domain).isdisjoint(' "\\\n\t\r'):
            raise TrafficError(f"the domain of {order.deployment} is not a domain")
        for binding in order.bindings:
            if refused := self.refusal(binding.listen):
                raise TrafficError(refused)

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
        )

    async def _rewrite(self, orders: Sequence[RouteOrder]) -> None:
        """The tables of the routes anew, with these orders, in one transaction."""
        elements: dict[Key, SetElement] = {}
        for order in orders:
            elements.update(elements_of(order))
        await self.egress.ensure()  # first: what a guest opens needs its mark
        await self._write(self._base.text() + change(self._base.table, {}, elements))
        known = {order.deployment: order for order in orders}
        self._last = NftablesView(intact=True, elements=elements, known=known)

    async def _look(self) -> NftablesView:
        """Without the second table the orders are known, and nothing is in force."""
        listings = [await self._list(*what) for what in self._base.listed]
        listing = b"".join(found for found in listings if found is not None)
        if listings[0] is None:
            view = NftablesView()
        else:
            if self._parsed is None or self._parsed[0] != listing:
                self._parsed = (listing, read(listing, self._base))
            view = self._parsed[1]
        self._last = view
        return view

    async def _list(self, *what: str) -> bytes | None:
        """None if there is no such thing. (nft 1.0.6 cannot list two families in one run.)"""
        listing = await self._nft(["nft", "-j", "list", *what])
        if listing.status == 0:
            return listing.stdout
        if b"No such file or directory" in listing.stderr:
            return None
        raise TrafficError(f"nft does not list our table: {listing.complaint}")

    async def _write(self, text: str) -> None:
        """Change orders or rules. However it ends, our last look is void."""
        self._last = None
        await self._commit(text)

    async def _commit(self, text: str) -> None:
        """One transaction; it may commit although its caller is cancelled."""
        result = await self._nft(["nft", "-f", "-"], stdin=text.encode())
        if result.status != 0:
            raise _RefusedTransactionError(f"nft refused the transaction: {result.complaint}")

    async def _nft(self, argv: list[str], stdin: bytes = b"") -> CompletedCommand:
        try:
            return await self._run(argv, stdin=stdin)
        except CommandError as error:
            raise TrafficError("nft did not do its work") from error

    def _ensure_sysctls(self) -> None:
        try:
            self._sysctls.ensure()
        except (OSError, StorageError) as error:
            raise TrafficError("forwarding could not be turned on") from error

    async def _reset_flows(
        self, endpoint: Endpoint, flows: list[conntrack.Flow]
    ) -> list[conntrack.Flow]:
        """Returns those left. A flow whose reset went out is closed in the kernel's table."""
        for _ in range(_RESET_ROUNDS):
            try:
                await finish_in_thread(resetting.provoke, flows)
            except OSError as error:
                raise TrafficError("idle clients could not be made to speak") from error
            flows = await conntrack.flows_to(endpoint, self._run)
            if not flows:
                break
            await asyncio.sleep(_RESET_ROUND_S)
        return flows


class _RefusedTransactionError(TrafficError):
    """The kernel does not hold what we took for granted, or cannot do what we ask."""
