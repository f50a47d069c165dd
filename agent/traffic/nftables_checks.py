"""What an order must be before it is put in force, and what must be free for it."""

from __future__ import annotations

import ipaddress

from agent.model.ids import parse_deployment_name
from agent.model.resources import Listen
from agent.traffic.nftables_view import NftablesView
from agent.traffic.occupied import occupant
from agent.traffic.port import RouteOrder, TrafficError


def refusal(listen: Listen) -> str | None:
    """See `Traffic.refusal`."""
    if listen.is_ipv6:
        return (
            f"{listen} is an IPv6 address, which the nftables data plane does not serve: "
            "guests have IPv4 addresses only; use traffic.mode userspace"
        )
    return None


def check(order: RouteOrder) -> None:
    """Nothing unchecked gets into the text that nft reads. Raises TrafficError."""
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
        if refused := refusal(binding.listen):
            raise TrafficError(refused)


def check_taken(view: NftablesView, order: RouteOrder) -> None:
    """A listener belongs to one deployment, and to no process of the host. Raises TrafficError."""
    held = {
        binding.listen: other.deployment
        for other in view.known.values()
        for binding in other.bindings
    }
    for binding in order.bindings:
        for listen, deployment in held.items():
            if deployment != order.deployment and listen.overlaps(binding.listen):
                raise TrafficError(f"{binding.listen} is taken by {deployment} on {listen}")
        if held.get(binding.listen) == order.deployment:
            continue
        if who := occupant(binding.listen):
            raise TrafficError(f"{binding.listen} is taken by {who}")
