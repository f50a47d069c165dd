"""What forbids a tap network as it is configured, seen before anything is touched. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from agent.enclaves.tap_names import Marks
from agent.enclaves.tap_state import Look, Wanted


def left_behind(look: Look, wanted: Wanted, marks: Marks) -> str | None:
    """Why guests that run could not be served: none changes its address or its gateway."""
    bridges = marks.bridges(look.links)
    addresses = list(marks.addresses(look.links).values())
    cidrs = [cidr for name in bridges for cidr in look.links[name].ipv4]
    serving = [cidr for cidr in cidrs if _serves(cidr, addresses)]
    outside = [one for one in addresses if ipaddress.IPv4Address(one) not in wanted.subnet]
    gateways = [cidr.partition("/")[0] for cidr in serving]
    if not outside and (not serving or wanted.gateway in gateways):
        return None
    return (
        f"network.subnet: bridge {(*bridges, wanted.bridge)[0]} still serves enclaves of "
        f"{(*serving, *outside)[0]}: stop them before the subnet becomes {wanted.subnet}"
    )


def _serves(cidr: str, addresses: Sequence[str]) -> bool:
    """Whether a bridge's address is in one subnet with one of these guests."""
    network = ipaddress.IPv4Interface(cidr).network
    return any(ipaddress.IPv4Address(one) in network for one in addresses)


def overlap(look: Look, wanted: Wanted, marks: Marks) -> str | None:
    """Why the subnet is not free. A route to half of the world or more is a default route."""
    ours = {wanted.bridge, *marks.bridges(look.links)}
    for route in look.routes:
        network = route.network
        if route.dev in ours or network.prefixlen <= 1:
            continue
        if network.overlaps(wanted.subnet):
            where = f" on {route.dev}" if route.dev else ""
            return (
                f"network.subnet {wanted.subnet} overlaps {network}{where}, which this host "
                f"already routes: choose another network.subnet"
            )
    return None
