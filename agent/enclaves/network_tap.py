"""A tap link for each guest on one bridge; the bridge has the guests' gateway address.

No guest reaches another: every port of the bridge is isolated. (Where a `hairpin` is configured
the filters alone keep guests apart.) A filter on each tap holds the guest to its own card and
address, and to the host's card (`tap_filter.py` says what passes); it is in force before the tap
is up, is looked at whenever the agent starts or links change, and a tap that cannot have it is
down. The host's neighbour entries and the bridge's forwarding entries are permanent, made from the
address that the agent gave, and nothing is learned from what a guest sends. There is no IPv6 on
bridge and taps. What guests may open towards the host or the world is the data plane's to say;
where that is a table of ours (`gated`), the filters pass only what it has marked, so that nothing
passes when it is gone. Where it is not, the filters hold guests to the egress policy.

What somebody else changes of all this is heard of from the kernel and put back (`watch`). A tap
that was deleted cannot be: its QEMU holds an end that leads nowhere; a person is told.

Invariant: what is ours is told by marks that the kernel keeps (`tap_names.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from agent.enclaves.link_news import LinkNews, Ours
from agent.enclaves.links import NetLink
from agent.enclaves.network import GuestAddress, NetworkError, mac_of, parse_subnet
from agent.enclaves.spec import TapNic
from agent.enclaves.tap_egress import Outward
from agent.enclaves.tap_guard import TapGuard
from agent.enclaves.tap_links import TapLinks
from agent.enclaves.tap_names import Marks, enclave_of, tap_name
from agent.enclaves.tap_refusals import left_behind, overlap
from agent.enclaves.tap_state import Look, Wanted, bridge_faults, taken, tap_faults
from agent.enclaves.tap_telling import TapTelling
from agent.errors import describe
from agent.host.commands import RunCommand, run_command
from agent.host.network_news import NetworkNews
from agent.host.pace import Pace
from agent.model.egress import NO_POLICY, EgressPolicy
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId

_BRIDGE = re.compile(r"[a-z0-9][a-z0-9_-]{0,14}")

log = logging.getLogger(__name__)


class TapNetwork:
    """One bridge. `instance` tells the bridges of several agents on one host apart."""

    kind = "tap"

    def __init__(
        self,
        bridge: str,
        subnet: str,
        *,
        instance: str,
        gated: bool = True,
        policy: EgressPolicy = NO_POLICY,
        hairpin: bool = False,
        host_ports: tuple[int, ...] = (),
        news: NetworkNews | None = None,
        run: RunCommand = run_command,
    ) -> None:
        """The gateway is the subnet's first address. Raises NetworkError.

        Only root may open the taps: QEMU is given its own, open. `gated`: the data plane is
        nftables, which marks what may pass. Where it is not, the taps' filters hold guests to the
        egress policy, and to `host_ports` of the host. `hairpin`: our table may join guests.
        `news`: where repairs and problems are told.
        """
        if not _BRIDGE.fullmatch(bridge):
            raise NetworkError(f"network.bridge: {bridge!r} cannot be the name of a link")
        self._bridge = bridge
        self._subnet = parse_subnet("network.subnet", subnet)
        self._gateway = str(self._subnet[1])
        self._marks = Marks.of(instance)
        mac, mark = self._marks.mac, self._marks.mark
        self._wanted = Wanted(bridge, mac, mark, self._gateway, self._subnet, hairpin=hairpin)
        self._outward = not gated  # whether the filters follow the networks that the host is on
        outward = Outward(policy, self._gateway, host_ports) if self._outward else None
        self._guard = TapGuard(self._wanted, gated=gated, outward=outward, run=run)
        self._links = TapLinks(self._wanted, self._marks, self._guard, run)
        self._telling = TapTelling(news or NetworkNews())
        self._lock = asyncio.Lock()
        self._taps: dict[str, str] = {}  # attached, as far as is known: name → address
        self._indexes: frozenset[int] = frozenset()  # of our links, when they were last looked at

    async def start(self) -> None:
        """Also brings taps of ours that lost their bridge, or had another, onto it."""
        async with self._lock:
            await self._start(await self._links.look())

    async def attach(
        self, enclave_id: EnclaveId, address: str, guest_ports: Sequence[int]
    ) -> TapNic:
        name = tap_name(enclave_id)
        async with self._lock:
            await self._guard.look_outward()
            links = await self._links.links()
            if self._bridge not in links:
                await self._start(await self._links.look())
            elif not self._marks.is_our_bridge(links[self._bridge]):
                raise self._foreign_bridge()
            there = links.get(name)
            if there is not None and not self._marks.is_or_may_be_ours(there):
                raise NetworkError(f"a link {name} is there that this agent did not make")
            if there is not None and not self._marks.serves(there, address):
                await self._links.remove_tap(there, with_bridge=self._bridge in links)
                there = None
            if there is None:
                await self._links.add_tap(name, address)
            await self._links.join(name, address)
            self._taps[name] = address
        return TapNic(name, mac_of(address))

    async def watch(self) -> None:
        pace = Pace()
        with LinkNews() as news:
            while True:
                try:
                    mended = await self._mend()
                except NetworkError as error:
                    self._telling.failed(describe(error))
                    raise
                if mended:
                    await asyncio.sleep(pace.after_repair())
                ours = Ours(self._bridge, self._subnet, self._indexes, networks=self._outward)
                await news.changed(ours)

    async def detach(self, enclave_id: EnclaveId) -> None:
        name = tap_name(enclave_id)
        async with self._lock:
            self._taps.pop(name, None)
            links = await self._links.links()
            tap = links.get(name)
            if tap is not None and self._marks.is_or_may_be_ours(tap):
                await self._links.remove_tap(tap, with_bridge=self._bridge in links)

    async def list_attached(self) -> set[EnclaveId]:
        return {enclave_of(tap.ifname) for tap in self._marks.taps(await self._links.links())}

    async def former_bridges(self) -> list[str]:
        """Bridges of ours that an earlier configuration called otherwise."""
        return [name for name in await self.bridges() if name != self._bridge]

    async def bridges(self) -> list[str]:
        """All bridges of ours."""
        return self._marks.bridges(await self._links.links())

    def endpoint(self, address: str, guest_port: int, guest_ports: Sequence[int]) -> Endpoint:
        if guest_port not in guest_ports:
            raise KeyError(guest_port)
        return Endpoint(address=address, port=guest_port)

    def guest_address(self, address: str) -> GuestAddress:
        return GuestAddress(f"{address}/{self._subnet.prefixlen}", self._gateway)

    def addresses(self) -> list[str]:
        return self._addresses

    @cached_property
    def _addresses(self) -> list[str]:
        """Made once: a /16 has 65000, and they are asked for every few seconds."""
        return [str(host) for host in self._subnet.hosts()][1:]

    async def restore(self) -> None:
        """Also what an earlier configuration called otherwise."""
        async with self._lock:
            links = await self._links.links()
            self._taps.clear()
            for tap in self._marks.taps(links):
                await self._links.remove_tap(tap, with_bridge=self._bridge in links)
            for bridge in self._marks.bridges(links):
                await self._links.remove_bridge(bridge)

    async def _start(self, look: Look) -> None:
        """Refuse what cannot be before anything is touched; undo what this call made."""
        bridge = look.links.get(self._bridge)
        if bridge is not None and not self._marks.is_our_bridge(bridge):
            raise self._foreign_bridge()
        ours = self._marks.bridges(look.links)
        for refused in (left_behind, overlap):
            if (why := refused(look, self._wanted, self._marks)) is not None:
                raise NetworkError(why)
        await self._guard.look_outward()
        if bridge is None and ours:
            await self._links.rename_bridge(ours[0])
            log.info("bridge renamed", extra={"from": ours[0], "to": self._bridge})
            bridge, ours = look.links[ours[0]], ours[1:]
        made = bridge is None
        if made:
            await self._links.add_bridge()
        try:
            await self._links.set_up_bridge(bridge)
            await self._take_over(look)
        except BaseException:
            if made:
                with contextlib.suppress(NetworkError):
                    await self._links.remove_bridge(self._bridge)
            raise
        for name in ours:
            if name != self._bridge:
                await self._links.remove_bridge(name)

    async def _take_over(self, look: Look) -> None:
        """The taps that are there: filtered, and on this bridge."""
        self._remember(look)
        here = self._present(look.links)
        await self._guard.guard(here, look.links)
        for name, address in here.items():
            if look.links[name].master != self._bridge:
                await self._links.join(name, address)
            else:
                await self._links.set_port(name)

    def _remember(self, look: Look) -> None:
        self._taps |= self._marks.addresses(look.links)

    def _present(self, links: Mapping[str, NetLink]) -> dict[str, str]:
        return {
            name: address
            for name, address in self._taps.items()
            if name in links and links[name].is_tap
        }

    async def _mend(self) -> bool:
        """Put back what somebody changed; whether there was anything. Raises NetworkError."""
        async with self._lock:
            look = await self._links.look()
            bridge = look.links.get(self._bridge)
            if bridge is not None and not self._marks.is_our_bridge(bridge):
                raise self._foreign_bridge()
            repaired: dict[str, list[str]] = {}
            if faults := bridge_faults(look, self._wanted):
                repaired[self._bridge] = faults
                await self._mend_bridge(look)
                look = await self._links.look()
            self._remember(look)
            here = self._present(look.links)
            moved = await self._guard.look_outward()
            for link in await self._guard.guard(here, look.links):
                if not moved:
                    repaired.setdefault(link, []).append("its filter was changed")
            for name, faults in (await self._mend_taps(look, here)).items():
                repaired.setdefault(name, []).extend(faults)
            bridges = [look.links[self._bridge]] if self._bridge in look.links else []
            taps = [look.links[name] for name in here]
            self._indexes = frozenset(link.ifindex for link in (*bridges, *taps))
            lost = {name: self._taps[name] for name in self._taps.keys() - here.keys()}
            self._telling.found(repaired, lost, taken(look.routes, self._wanted), self._wanted)
            return bool(repaired)

    async def _mend_bridge(self, look: Look) -> None:
        bridge = look.links.get(self._bridge)
        if bridge is None and (renamed := self._marks.bridges(look.links)):
            await self._links.rename_bridge(renamed[0])
            bridge = look.links[renamed[0]]
        elif bridge is None:
            await self._links.add_bridge()
        await self._links.set_up_bridge(bridge)

    async def _mend_taps(self, look: Look, here: Mapping[str, str]) -> dict[str, list[str]]:
        wanted = dataclasses.replace(self._wanted, taps=here)
        repaired = {}
        for name, address in here.items():
            faults = tap_faults(name, look, wanted)
            if look.links[name].ifalias != self._marks.alias(address):
                faults.append("its alias was changed")
                await self._links.mark_tap(name, address)
            if faults:
                repaired[name] = faults
                await self._links.join(name, address)
        return repaired

    def _foreign_bridge(self) -> NetworkError:
        return NetworkError(
            f"network.bridge: a link {self._bridge} is there that this agent did not make: choose "
            f"another network.bridge, or remove it with `ip link delete {self._bridge}`"
        )
