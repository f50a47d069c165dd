"""Makes, sets up and removes our bridge and taps, with the entries that the host has of guests.

Every call may be repeated: it changes nothing that is as it should be.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.enclaves.links import Links, NetLink, turn_ipv6_off
from agent.enclaves.network import NetworkError, mac_of
from agent.enclaves.tap_guard import TapGuard
from agent.enclaves.tap_names import Marks
from agent.enclaves.tap_state import Look, Wanted
from agent.host.commands import RunCommand

_CLOSED_PORT = "type bridge_slave learning off flood off mcast_flood off"
PORT = f"{_CLOSED_PORT} isolated on hairpin off"
# A kernel that filters bridged packets hands what it translates from one port to another.
_HAIRPIN_PORT = f"{_CLOSED_PORT} isolated off hairpin on"
_BRIDGE = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
_QUEUE_PACKETS = 1000


class TapLinks:
    """All calls raise NetworkError."""

    def __init__(self, wanted: Wanted, marks: Marks, guard: TapGuard, run: RunCommand) -> None:
        self._wanted = wanted
        self._bridge = wanted.bridge
        self._marks = marks
        self._guard = guard
        self._links = Links(run)

    async def look(self) -> Look:
        """Everything of one moment."""
        links = await self._links.links()
        routes = await self._links.routes()
        bridge = links.get(self._bridge)
        if bridge is None or not self._marks.is_our_bridge(bridge):
            return Look(links, routes)
        neighbours = await self._links.neighbours(self._bridge)
        return Look(links, routes, neighbours, await self._links.forwarding(self._bridge))

    async def links(self) -> dict[str, NetLink]:
        return await self._links.links()

    async def add_bridge(self) -> None:
        await self._links.change(
            [f"link add name {self._bridge} address {self._wanted.mac} {_BRIDGE}"]
        )

    async def rename_bridge(self, old: str) -> None:
        """A bridge of ours that has another name. Kernels before 6.2 rename none that is up."""
        rename = f"link set dev {old} name {self._bridge}"
        try:
            await self._links.change([rename])
        except NetworkError:
            await self._links.change([f"link set dev {old} down", rename])

    async def set_up_bridge(self, link: NetLink | None) -> None:
        """As it should be, filtered, then up. `link`: as it was found; None: it was just made.

        What is as it should be is not set again: the kernel would let ports begin anew.
        """
        name, wanted = self._bridge, self._wanted
        turn_ipv6_off(name)
        await self._links.change(
            [
                *(_changes(link, wanted) if link is not None else ()),
                f'link set dev {name} alias "{wanted.alias}"',
                f"address replace {wanted.cidr} broadcast + dev {name}",
            ]
        )
        await self._guard.guard_bridge()
        route = f"{wanted.subnet} dev {name} proto kernel scope link src {wanted.gateway}"
        await self._links.change([f"link set dev {name} up", f"route replace {route}"])

    async def add_tap(self, name: str, address: str) -> None:
        await self._links.change([f"tuntap add dev {name} mode tap"])
        await self.mark_tap(name, address)
        turn_ipv6_off(name)

    async def mark_tap(self, name: str, address: str) -> None:
        """Have it known as ours."""
        alias = self._marks.alias(address)
        await self._links.change([f'link set dev {name} alias "{alias}"'])

    async def join(self, name: str, address: str) -> None:
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
        await self._guard.guard_tap(name, address)
        await self._links.change([f"link set dev {name} up"])

    async def set_port(self, name: str) -> None:
        """Of a tap that is on the bridge."""
        await self._links.change([f"link set dev {name} {self._port}"])

    @property
    def _port(self) -> str:
        return _HAIRPIN_PORT if self._wanted.hairpin else PORT

    async def remove_tap(self, tap: NetLink, *, with_bridge: bool) -> None:
        """The neighbour entry first: what names it, the tap's alias, goes last.

        It may not be there, and `ip` ends at a line that fails: so it is made, then deleted.
        `with_bridge`: the bridge is there.
        """
        address = self._marks.address_of(tap)
        lines = [f"link delete dev {tap.ifname}"]
        if address is not None and with_bridge:
            entry = f"{address} dev {self._bridge}"
            lines = [
                f"neighbour replace {entry} lladdr {mac_of(address)} nud permanent",
                f"neighbour delete {entry}",
                *lines,
            ]
        await self._links.change(lines)

    async def remove_bridge(self, name: str) -> None:
        await self._links.change([f"link delete dev {name}"])


def _changes(link: NetLink, wanted: Wanted) -> Iterator[str]:
    """Commands for what somebody changed of the bridge itself; addresses that are not ours go."""
    yield from (
        f"address delete {other} dev {wanted.bridge}"
        for other in link.ipv4
        if other != wanted.cidr
    )
    change = f"link set dev {wanted.bridge}"
    if link.address != wanted.mac:
        yield f"{change} address {wanted.mac}"
    if "NOARP" in link.flags:
        yield f"{change} arp on"
    if link.master is not None:
        yield f"{change} nomaster"
    if link.linkinfo.info_data.stp_state:  # while it is on, no forward delay is short enough
        yield f"{change} type bridge stp_state 0"
        yield f"{change} {_BRIDGE}"
