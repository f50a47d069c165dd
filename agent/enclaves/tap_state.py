"""Holds what the kernel has of our bridge and taps against what it should be. Pure.

Each fault is named in words for a person, and what mends it is one and the same for all of a link:
setting it up again, which changes nothing that is as it should be.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.enclaves.links import Forwarding, KernelRoute, Neighbour, NetLink
from agent.enclaves.network import mac_of

_PORT = {"learning": False, "flood": False, "mcast_flood": False}


@dataclass(frozen=True, slots=True)
class Look:
    """What the kernel tells at one moment. The last three are of our bridge, if it is there."""

    links: Mapping[str, NetLink]
    routes: Sequence[KernelRoute] = ()
    neighbours: Sequence[Neighbour] = ()
    forwarding: Sequence[Forwarding] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should be. `gateway`: the bridge's own address. `hairpin`: ports reach each other."""

    bridge: str
    mac: str
    alias: str
    gateway: str
    subnet: ipaddress.IPv4Network
    taps: Mapping[str, str] = field(default_factory=dict)  # name → address of its enclave
    hairpin: bool = False

    @property
    def cidr(self) -> str:
        """The bridge's address with its prefix."""
        return f"{self.gateway}/{self.subnet.prefixlen}"


def bridge_faults(look: Look, wanted: Wanted) -> list[str]:
    """What is wrong with the bridge; nothing if all is well."""
    link = look.links.get(wanted.bridge)
    return ["it was deleted"] if link is None else list(_of_bridge(link, look, wanted))


def _of_bridge(link: NetLink, look: Look, wanted: Wanted) -> Iterator[str]:
    if link.address != wanted.mac:
        yield f"its hardware address was changed to {link.address}"
    if link.ifalias != wanted.alias:
        yield "its alias was changed"
    if not link.is_up:
        yield "it was set down"
    if "NOARP" in link.flags:
        yield "ARP was turned off"
    if link.master is not None:
        yield f"it was put into {link.master}"
    if link.linkinfo.info_data.stp_state:
        yield "the spanning tree protocol was turned on"
    if wanted.cidr not in link.ipv4:
        yield f"its address {wanted.cidr} was taken away"
    elif link.is_up and not _is_routed(look, wanted):
        yield f"the route to {wanted.subnet} was taken away"


def _is_routed(look: Look, wanted: Wanted) -> bool:
    return any(
        route.dev == wanted.bridge and route.network == wanted.subnet for route in look.routes
    )


def tap_faults(name: str, look: Look, wanted: Wanted) -> list[str]:
    """What is wrong with a tap that is there."""
    return list(_of_tap(look.links[name], look, wanted))


def _of_tap(link: NetLink, look: Look, wanted: Wanted) -> Iterator[str]:
    address = wanted.taps[link.ifname]
    mac = mac_of(address)
    if link.master != wanted.bridge:
        yield f"it was put into {link.master}" if link.master else "it was taken off its bridge"
    else:
        port = link.linkinfo.info_slave_data
        wants = {"isolated": not wanted.hairpin, **_PORT, "hairpin": wanted.hairpin}
        changed = [one for one, value in wants.items() if getattr(port, one) is (not value)]
        if changed:
            yield f"its port was changed ({', '.join(changed)})"
        if not _forwards(look, link.ifname, mac):
            yield "the forwarding entry of its card was taken away"
    if not link.is_up:
        yield "it was set down"
    if not _is_known(look, address, mac):
        yield f"the neighbour entry of {address} was changed"


def _forwards(look: Look, name: str, mac: str) -> bool:
    return any(
        one.ifname == name and one.mac == mac and one.state == "static" for one in look.forwarding
    )


def _is_known(look: Look, address: str, mac: str) -> bool:
    return any(
        one.dst == address and one.lladdr == mac and "PERMANENT" in one.state
        for one in look.neighbours
    )


def taken(routes: Sequence[KernelRoute], wanted: Wanted) -> KernelRoute | None:
    """A route by which packets to guests would leave by another link, or stay.

    Wider ones do no harm to what is there: the more specific route is taken.
    """
    for route in routes:
        network = route.network
        narrow = network.prefixlen >= wanted.subnet.prefixlen
        if route.dev != wanted.bridge and narrow and network.overlaps(wanted.subnet):
            return route
    return None
