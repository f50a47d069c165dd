"""A tap link for each guest on one bridge; the bridge has the guests' gateway address.

No guest reaches another: every port of the bridge is isolated. (Where a `hairpin` is configured
the filters alone keep guests apart.) A filter on each tap holds the guest to its own card and
address, and to the host's card (`tap_filter.py` says what passes); it is in force before the tap
is up, is looked at whenever the agent starts or filters change, and a tap that cannot have it is
down. The host's neighbour entries and the bridge's forwarding entries are permanent, made from the
address that the agent gave, and nothing is learned from what a guest sends. There is no IPv6 on
bridge and taps. What guests may open towards the host or the world is the data plane's to say;
where that is a table of ours (`gated`), the filters pass only what it has marked, so that nothing
passes when it is gone. Where it is not, the filters hold guests to the egress policy.

Invariant: what is ours is told by marks that the kernel keeps, never by name alone: the bridge by
its hardware address, given in the very call that creates it; a tap by its alias. A tap of ours
without alias is one whose attaching was cut short; only its own enclave's attach or detach, which
know its name, take it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from agent.enclaves import tap_filter
from agent.enclaves.filters import NEEDS, Filters, Hook, commands
from agent.enclaves.links import Links, NetLink, turn_ipv6_off
from agent.enclaves.network import GuestAddress, NetworkError, mac_of, parse_subnet
from agent.enclaves.packet_program import Program
from agent.enclaves.spec import TapNic
from agent.enclaves.tap_egress import Outward
from agent.host.commands import CommandError, RunCommand, run_command
from agent.host.kernel_news import FILTERS, NETWORKS, KernelNews
from agent.host.networks import own_networks
from agent.host.threads import finish_in_thread
from agent.model.egress import NO_POLICY, EgressPolicy
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId

_PREFIX = "enc-"
_TAP = re.compile(_PREFIX + r"[a-z2-7]{8}")
_BRIDGE = re.compile(r"[a-z0-9][a-z0-9_-]{0,14}")
_CLOSED_PORT = "type bridge_slave learning off flood off mcast_flood off"
_PORT = f"{_CLOSED_PORT} isolated on hairpin off"
# A kernel that filters bridged packets hands what it translates from one port to another.
_HAIRPIN_PORT = f"{_CLOSED_PORT} isolated off hairpin on"
_QUEUE_PACKETS = 1000
_Wanted = dict[Hook, Program | None]

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
        run: RunCommand = run_command,
    ) -> None:
        """The gateway is the subnet's first address. Raises NetworkError.

        Only root may open the taps: QEMU is given its own, open. `gated`: the data plane is
        nftables, which marks what may pass. Where it is not, the taps' filters hold guests to the
        egress policy, and to `host_ports` of the host. `hairpin`: our table may join guests.
        """
        if not _BRIDGE.fullmatch(bridge):
            raise NetworkError(f"network.bridge: {bridge!r} cannot be the name of a link")
        self._bridge = bridge
        self._subnet = parse_subnet("network.subnet", subnet)
        self._gateway = str(self._subnet[1])
        digest = hashlib.sha256(instance.encode()).digest()
        self._mark = f"enclave-agent {digest.hex()[:8]}"
        self._mac = ":".join(f"{byte:02x}" for byte in b"\x02\x01" + digest[:4])
        self._gated = gated
        self._hairpin = hairpin
        self._outward = None if gated else Outward(policy, self._gateway, host_ports)
        self._links = Links(run)
        self._filters = Filters(run)
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Also brings taps of ours that lost their bridge back onto it."""
        async with self._lock:
            await self._start(await self._links.links())

    async def attach(
        self, enclave_id: EnclaveId, address: str, guest_ports: Sequence[int]
    ) -> TapNic:
        name = _tap_name(enclave_id)
        async with self._lock:
            await self._look_outward()
            links = await self._links.links()
            if self._bridge not in links:
                await self._start(links)
            elif not self._is_our_bridge(links[self._bridge]):
                raise self._foreign_bridge()
            there = links.get(name)
            if there is not None and not self._is_or_may_be_ours(there):
                raise NetworkError(f"a link {name} is there that this agent did not make")
            if there is not None and not self._serves(there, address):
                await self._remove_tap(there, links)
                there = None
            if there is None:
                await self._add_tap(name, address)
            await self._join(name, address)
        return TapNic(name, mac_of(address))

    async def watch(self) -> None:
        with KernelNews(FILTERS if self._gated else FILTERS | NETWORKS) as news:
            while True:
                await self._mend()
                await news.changed()

    async def _mend(self) -> None:
        """Put back filters that somebody changed, and have taps up that are filtered again."""
        async with self._lock:
            links = await self._links.links()
            bridge = links.get(self._bridge)
            if bridge is None or not self._is_our_bridge(bridge):
                return
            taps = self._our_taps(links)
            moved = await self._look_outward()
            for link in await self._guard(links, taps):
                if not moved:
                    log.warning(
                        "the filter of a link was changed; it was put back", extra={"link": link}
                    )

    async def _look_outward(self) -> bool:
        """What the host is on now; whether that is news. Raises NetworkError."""
        if self._outward is None:
            return False
        try:
            found = await finish_in_thread(own_networks, self._bridge)
        except OSError as error:
            raise NetworkError("the host's own networks cannot be read") from error
        before = self._outward
        self._outward = replace(before, own_networks=found)
        return self._outward != before

    async def detach(self, enclave_id: EnclaveId) -> None:
        async with self._lock:
            links = await self._links.links()
            tap = links.get(_tap_name(enclave_id))
            if tap is not None and self._is_or_may_be_ours(tap):
                await self._remove_tap(tap, links)

    async def list_attached(self) -> set[EnclaveId]:
        links = await self._links.links()
        return {EnclaveId(tap.ifname.removeprefix(_PREFIX)) for tap in self._our_taps(links)}

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
        async with self._lock:
            links = await self._links.links()
            for tap in self._our_taps(links):
                await self._remove_tap(tap, links)
            bridge = links.get(self._bridge)
            if bridge is not None and self._is_our_bridge(bridge):
                await self._links.change([f"link delete dev {self._bridge}"])

    async def _start(self, links: dict[str, NetLink]) -> None:
        bridge = links.get(self._bridge)
        if bridge is not None and not self._is_our_bridge(bridge):
            raise self._foreign_bridge()
        await self._refuse_overlap()
        await self._look_outward()
        if bridge is None:
            await self._links.change([f"link add name {self._bridge} {self._bridge_words()}"])
        try:
            await self._set_up_bridge(links)
            taps = self._our_taps(links)
            await self._guard(links, taps)
            joined = (tap for tap in taps if tap.master == self._bridge)
            await self._links.change([f"link set dev {tap.ifname} {self._port}" for tap in joined])
            for tap in taps:
                address = self._address_of(tap)
                if tap.master is None and address is not None:
                    await self._join(tap.ifname, address)
        except BaseException:
            if bridge is None:
                with contextlib.suppress(NetworkError):
                    await self._links.change([f"link delete dev {self._bridge}"])
            raise

    def _bridge_words(self) -> str:
        return f"address {self._mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"

    async def _set_up_bridge(self, links: dict[str, NetLink]) -> None:
        turn_ipv6_off(self._bridge)
        ours = f"{self._gateway}/{self._subnet.prefixlen}"
        others = [a for a in await self._links.ipv4_of(self._bridge) if a != ours]
        if others and self._our_taps(links):
            raise NetworkError(
                f"network.subnet: bridge {self._bridge} still serves enclaves of {others[0]}: "
                f"stop them before the subnet becomes {self._subnet}"
            )
        await self._links.change(
            [
                *(f"address delete {other} dev {self._bridge}" for other in others),
                f'link set dev {self._bridge} alias "{self._mark}"',
                f"address replace {ours} broadcast + dev {self._bridge}",
            ]
        )
        await self._filter(self._bridge, self._bridge_filter())
        await self._links.change([f"link set dev {self._bridge} up"])

    async def _refuse_overlap(self) -> None:
        """A route to half of the world or more is a default route in disguise."""
        for route in await self._links.routes():
            network = route.network
            if route.dev == self._bridge or network.prefixlen <= 1:
                continue
            if network.overlaps(self._subnet):
                where = f" on {route.dev}" if route.dev else ""
                raise NetworkError(
                    f"network.subnet {self._subnet} overlaps {network}{where}, which this host "
                    f"already routes: choose another network.subnet"
                )

    async def _add_tap(self, name: str, address: str) -> None:
        await self._links.change(
            [
                f"tuntap add dev {name} mode tap",
                f'link set dev {name} alias "{self._mark} {address}"',
            ]
        )
        turn_ipv6_off(name)

    async def _join(self, name: str, address: str) -> None:
        """Put a tap onto the bridge, closed to everything but its own address's frames."""
        mac = mac_of(address)
        await self._links.change(
            [
                f"link set dev {name} txqueuelen {_QUEUE_PACKETS} master {self._bridge}",
                f"link set dev {name} {self._port}",
                f"neighbour replace {address} lladdr {mac} dev {self._bridge} nud permanent",
            ]
        )
        await self._links.change([f"fdb replace {mac} dev {name} master static"], tool="bridge")
        await self._filter(name, self._tap_filters(name, address))
        await self._links.change([f"link set dev {name} up"])

    @property
    def _port(self) -> str:
        return _HAIRPIN_PORT if self._hairpin else _PORT

    def _tap_filters(self, name: str, address: str) -> _Wanted:
        port = tap_filter.Port(mac_of(address), address, self._mac, self._gateway, self._subnet)
        return {
            Hook(name, "ingress"): tap_filter.from_guest(port, self._outward),
            Hook(name, "egress"): tap_filter.to_guest(
                port, gated=self._gated, hairpin=self._hairpin
            ),
        }

    def _bridge_filter(self) -> _Wanted:
        gate = tap_filter.to_host(self._gateway) if self._gated else None
        return {Hook(self._bridge, "ingress"): gate}

    async def _filter(self, link: str, wanted: _Wanted) -> None:
        """Have these filters in force, as the kernel tells, or the link down.

        Raises NetworkError.
        """
        try:
            differing = await self._filters.differing(wanted)
            await self._filters.put({hook: wanted[hook] for hook in differing})
            if differing and await self._filters.differing(wanted):
                raise NetworkError(f"the filter of {link} is not in force")
        except BaseException:
            with contextlib.suppress(NetworkError):
                await self._links.change([f"link set dev {link} down"])
            raise

    async def _guard(self, links: dict[str, NetLink], taps: Sequence[NetLink]) -> set[str]:
        """Have every link of ours filtered, or down; returns those that were not.

        One look for all of them. Raises NetworkError when all that can be filtered are.
        """
        addresses = {tap.ifname: address for tap in taps if (address := self._address_of(tap))}
        wanted = self._bridge_filter()
        for name, address in addresses.items():
            wanted |= self._tap_filters(name, address)
        changed = {hook.link for hook in await self._filters.differing(wanted)}
        failed: NetworkError | None = None
        for link in sorted(changed):
            own = {hook: program for hook, program in wanted.items() if hook.link == link}
            try:
                await self._filter(link, own)
            except NetworkError as error:
                failed = error
                addresses.pop(link, None)
        down = [name for name in addresses if not links[name].is_up]
        await self._links.change([f"link set dev {name} up" for name in down])
        if failed is not None:
            raise failed
        return changed

    async def _remove_tap(self, tap: NetLink, links: dict[str, NetLink]) -> None:
        """The neighbour entry first: what names it, the tap's alias, goes last.

        It may not be there, and `ip` ends at a line that fails: so it is made, then deleted.
        """
        address = self._address_of(tap)
        lines = [f"link delete dev {tap.ifname}"]
        if address is not None and self._bridge in links:
            entry = f"{address} dev {self._bridge}"
            lines = [
                f"neighbour replace {entry} lladdr {mac_of(address)} nud permanent",
                f"neighbour delete {entry}",
                *lines,
            ]
        await self._links.change(lines)

    def _our_taps(self, links: dict[str, NetLink]) -> list[NetLink]:
        return [
            link
            for name, link in sorted(links.items())
            if _TAP.fullmatch(name) and link.is_tap and self._is_marked(link)
        ]

    def _is_our_bridge(self, link: NetLink) -> bool:
        return link.is_bridge and link.address == self._mac

    def _is_marked(self, tap: NetLink) -> bool:
        return tap.ifalias is not None and tap.ifalias.startswith(f"{self._mark} ")

    def _is_or_may_be_ours(self, link: NetLink) -> bool:
        return link.is_tap and (link.ifalias is None or self._is_marked(link))

    def _serves(self, tap: NetLink, address: str) -> bool:
        return tap.owner_uid is None and tap.ifalias == f"{self._mark} {address}"

    def _address_of(self, tap: NetLink) -> str | None:
        if not self._is_marked(tap):
            return None
        address = (tap.ifalias or "").rpartition(" ")[2]
        try:
            return str(ipaddress.IPv4Address(address))
        except ValueError:
            return None

    def _foreign_bridge(self) -> NetworkError:
        return NetworkError(
            f"network.bridge: a link {self._bridge} is there that this agent did not make: choose "
            f"another network.bridge, or remove it with `ip link delete {self._bridge}`"
        )


def _tap_name(enclave_id: EnclaveId) -> str:
    name = f"{_PREFIX}{enclave_id}"
    if not _TAP.fullmatch(name):
        raise NetworkError(f"{enclave_id!r} is not an enclave's id")
    return name


async def probe_tap(
    run: RunCommand = run_command,
    scratch: Sequence[str] = ("unshare", "--net", "--"),
) -> str | None:
    """Why this host cannot have a tap network, or None.

    Bridge and tap are made in a network namespace that ends with the tool: nothing of the host
    is touched. `scratch`, put before a command, has it run in one.
    """
    for tool in ("bridge", "tc"):
        if shutil.which(tool) is None:
            return f"the tool `{tool}` (package iproute2) is not installed"
    lines = (
        "link add name probe type bridge",
        "tuntap add dev probe-tap mode tap",
        "link set dev probe-tap master probe",
        f"link set dev probe-tap {_PORT}",
    )
    gate = tap_filter.to_host("192.0.2.1")
    filters = commands({Hook("lo", "ingress"): gate, Hook("lo", "egress"): gate})
    tries = (
        ("ip", "".join(f"{line}\n" for line in lines), "no bridge with a tap can be made: {}"),
        ("tc", filters, f"a guest could not be held to its address ({{}}): it needs {NEEDS}"),
    )
    for tool, script, why in tries:
        try:
            done = await run([*scratch, tool, "-batch", "-"], stdin=script.encode())
        except CommandError as error:
            return str(error)
        if done.status != 0:
            return why.format(done.complaint)
    return None
