"""Whose a listener is: one deployment's, or several's of different domains, or a process's."""

from __future__ import annotations

from collections.abc import Container, Iterable

from agent.model.resources import Listen
from agent.traffic.haproxy_config import frontend_name
from agent.traffic.occupied import occupant
from agent.traffic.port import RouteOrder, TrafficError


def check_taken(
    orders: Iterable[RouteOrder], order: RouteOrder, inherited: Container[str] = ()
) -> None:
    """Raises TrafficError if an order cannot be in force beside these.

    `inherited` names the listeners whose sockets are to be had from a process of ours.
    """
    others = [other for other in orders if other.deployment != order.deployment]
    mine = [other for other in orders if other.deployment == order.deployment]
    held = {binding.listen for other in [*others, *mine] for binding in other.bindings}
    wanted = [binding.listen for binding in order.bindings]
    for number, listen in enumerate(wanted):
        for before in wanted[:number]:
            if listen.overlaps(before):
                raise TrafficError(f"{listen} is named twice in the order of {order.deployment}")
        for other in others:
            _check_beside(listen, order, other)
        ours = listen in held or frontend_name(listen) in inherited
        if not ours and (who := occupant(listen)):
            raise TrafficError(f"{listen} is taken by {who}")


def _check_beside(listen: Listen, order: RouteOrder, other: RouteOrder) -> None:
    mine, theirs = (one.domain.lower() if one.domain else None for one in (order, other))
    for binding in other.bindings:
        by_name = listen == binding.listen and mine and theirs and mine != theirs
        if listen.overlaps(binding.listen) and not by_name:
            raise TrafficError(f"{listen} is taken by {other.deployment} on {binding.listen}")
