"""What HAProxy is told: a configuration with the listeners, and maps with the routes. Pure.

A process's configuration never changes: it says who listens where, and by which name (SNI) a
connection finds its deployment on a listener that several share. Where connections go is in two
maps that the runtime API changes. `routes` has one entry a deployment: the edition in force and
the order that it was made from. `members` has what an edition consists of, so that a whole edition
is prepared beside the one in force, and one change of one entry switches all of a deployment's
listeners. HAProxy runs one thread: nothing comes between the lookups of one connection.

Nothing gets into these texts but what `check` let pass.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName, parse_deployment_name
from agent.model.resources import Listen
from agent.traffic import haproxy_limits
from agent.traffic.limits import Limits
from agent.traffic.port import Binding, RouteOrder, TrafficError

BACKEND = "guests"
ROUTES = "routes.map"
MEMBERS = "members.map"
NAMES = "names.map"
_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_VALUE_BYTES = 12000  # a command of the runtime API is one line of 16 KiB at most
_SNI_S = 5
_FLOATING = "transparent"  # HAProxy's word for a socket whose address need not be the host's

Layout = Mapping[Listen, Mapping[DeploymentName, str | None]]


@dataclass(frozen=True, slots=True)
class HaproxyFiles:
    """Where a process has its files and as whom it runs; `user` None: as whoever starts it."""

    directory: Path
    limits: Limits
    max_connections: int
    user: str | None = None

    @property
    def config(self) -> Path:
        return self.directory / "haproxy.cfg"

    @property
    def socket(self) -> Path:
        return self.directory / "s"


def check(order: RouteOrder) -> None:
    """Raises TrafficError for what has no place in a configuration or a command."""
    try:
        parse_deployment_name(order.deployment)
        for binding in order.bindings:
            Listen.parse(str(binding.listen))
            for endpoint in binding.endpoints:
                ipaddress.IPv4Address(endpoint.address)
                Listen.parse(server_name(endpoint))
    except ValueError as error:
        raise TrafficError(f"the order of {order.deployment} is not valid") from error
    if order.domain is not None and not _DOMAIN.fullmatch(order.domain):
        raise TrafficError(f"the domain of {order.deployment} is not a domain")
    if len(route_value(0, order)) > _VALUE_BYTES:
        raise TrafficError(f"the order of {order.deployment} is too long for HAProxy")


def layout_of(orders: Iterable[RouteOrder]) -> Layout:
    """Who is on each listener, and under which domain. It alone decides about a new process.

    The domain of a deployment that has its listener to itself does not matter there.
    """
    tenants: dict[Listen, dict[DeploymentName, str | None]] = {}
    for order in sorted(orders, key=lambda one: one.deployment):
        for binding in order.bindings:
            domain = order.domain.lower() if order.domain else None
            tenants.setdefault(binding.listen, {})[order.deployment] = domain
    return {
        listen: on if len(on) > 1 else dict.fromkeys(on) for listen, on in sorted(tenants.items())
    }


def frontend_name(listen: Listen) -> str:
    return f"{listen.address}-{listen.port}"


def server_name(endpoint: Endpoint) -> str:
    """A server is named by its address, which never changes: who is connected stays countable."""
    return f"{endpoint.address}:{endpoint.port}"


def members_of(edition: int, order: RouteOrder) -> dict[str, str]:
    """For each listener the count of its servers, and the servers."""
    found = {}
    for binding in order.bindings:
        group = f"{edition}/{frontend_name(binding.listen)}/"
        found[group] = str(len(binding.endpoints))
        for number, endpoint in enumerate(binding.endpoints):
            found[f"{group}{number}"] = server_name(endpoint)
    return found


def route_value(edition: int, order: RouteOrder) -> str:
    bindings = (
        f"{binding.listen}={'+'.join(map(server_name, binding.endpoints))}"
        for binding in order.bindings
    )
    return "!".join([str(edition), str(order.generation), order.domain or "", *bindings])


def parse_route(deployment: str, value: str) -> tuple[int, RouteOrder]:
    """What `route_value` was made from. Raises ValueError or TrafficError."""
    edition, generation, domain, *bindings = value.split("!")
    order = RouteOrder(
        deployment=parse_deployment_name(deployment),
        generation=int(generation),
        bindings=tuple(map(_parse_binding, bindings)),
        domain=domain or None,
    )
    check(order)
    return int(edition), order


def _parse_binding(text: str) -> Binding:
    listen, _, endpoints = text.partition("=")
    parsed = [Listen.parse(one) for one in endpoints.split("+") if one]
    return Binding(
        listen=Listen.parse(listen),
        endpoints=tuple(Endpoint(address=one.address, port=one.port) for one in parsed),
    )


def render(
    place: HaproxyFiles, orders: Sequence[RouteOrder], bound: Container[str] = ()
) -> dict[str, str]:
    """The files of a process that begins with these orders, by name.

    `bound`: listeners to be taken over from a process that has them with `rigid_binds`.
    """
    layout = layout_of(orders)
    members: dict[str, str] = {}
    routes: dict[str, str] = {}
    names: dict[str, str] = {}
    for edition, order in enumerate(orders, 1):
        routes[order.deployment] = route_value(edition, order)
        members |= members_of(edition, order)
    for listen, tenants in layout.items():
        for deployment, domain in tenants.items():
            if domain is not None:
                names[f"{frontend_name(listen)}/{domain}"] = deployment
    servers = {
        server_name(endpoint)
        for order in orders
        for binding in order.bindings
        for endpoint in binding.endpoints
    }
    parts = [
        _global(place),
        *(_frontend(place, listen, tenants, bound) for listen, tenants in layout.items()),
        _backend(servers),
        haproxy_limits.tables(),
    ]
    return {
        ROUTES: _map(routes),
        MEMBERS: _map(members),
        NAMES: _map(names),
        place.config.name: "\n".join(parts),
    }


def limits_line(limits: Limits) -> str:
    """What tells in a configuration which limits it was made with."""
    return f"# {limits}"


def _map(entries: Mapping[str, str]) -> str:
    return "".join(f"{key} {value}\n" for key, value in entries.items())


def _global(place: HaproxyFiles) -> str:
    jail = f"  user {place.user}\n  chroot {place.directory}\n" if place.user else ""
    return (
        "global\n"
        f"  stats socket {place.socket} mode 600 level admin expose-fd listeners\n"
        f"{jail}"
        f"{limits_line(place.limits)}\n"
        "  nbthread 1\n"
        "  noreuseport\n"
        f"  maxconn {place.max_connections}\n"
        "defaults\n"
        "  mode tcp\n"
        "  timeout connect 10s\n"
        f"{haproxy_limits.timeouts(place.limits)}"
        "  option clitcpka\n"
        "  option srvtcpka\n"
        "  retries 0\n"
    )


def rigid_binds(config: str) -> frozenset[str]:
    """Of a process's configuration, the listeners that were there only with their address."""
    return frozenset(
        words[1]
        for words in map(str.split, config.splitlines())
        if words[:1] == ["bind"] and _FLOATING not in words
    )


def _bind(listen: Listen, bound: Container[str]) -> str:
    """An address that is not there yet is waited for, but a socket is inherited as it is."""
    floating = not listen.is_wildcard and str(listen) not in bound
    words = ["bind", str(listen)]
    words += ["v6only"] if listen.is_ipv6 else []
    words += [_FLOATING] if floating else []
    return " ".join(words)


def _frontend(
    place: HaproxyFiles,
    listen: Listen,
    tenants: Mapping[DeploymentName, str | None],
    bound: Container[str],
) -> str:
    """A deployment that is alone is sent everything, TLS or not; else the name decides."""
    name = frontend_name(listen)
    routes, members = place.directory / ROUTES, place.directory / MEMBERS
    shared = len(tenants) > 1
    at = "content" if shared else "connection"
    (first, *_) = tenants
    place_of_source = name if shared else first
    lines = [
        f"frontend {name}",
        _bind(listen, bound),
        *haproxy_limits.of_source(place.limits, place_of_source, counts=not shared),
    ]
    if shared:
        key = f"str({name}/),concat(,sess.name)"
        lines += [
            f"tcp-request inspect-delay {_SNI_S}s",
            "tcp-request content reject unless { req.ssl_hello_type 1 }",
            "tcp-request content set-var(sess.name) req.ssl_sni,lower",
            f"tcp-request content set-var(sess.deployment) {key},map({place.directory / NAMES})",
        ]
    deployment = "var(sess.deployment)" if shared else f"str({first})"
    group, number = "var(sess.group)", "concat(,sess.number)"
    lines += [
        *haproxy_limits.of_deployment(place.limits, at, deployment),
        f"tcp-request {at} set-var(sess.edition) {deployment},map({routes}),field(1,!)",
        f"tcp-request {at} set-var(sess.group) var(sess.edition),concat(/{name}/)",
        f"tcp-request {at} set-var(sess.count) {group},map({members},0),add(0)",
        f"tcp-request {at} reject unless {{ var(sess.count) -m int gt 0 }}",
        f"tcp-request {at} set-var(sess.number) rand,mod(sess.count)",
        f"tcp-request {at} set-var(sess.server) {group},{number},map({members})",
        f"default_backend {BACKEND}",
    ]
    return "\n  ".join(lines) + "\n"


def _backend(servers: Iterable[str]) -> str:
    """Of no weight: no server is ever chosen but the one that a route names."""
    lines = [f"backend {BACKEND}", "use-server %[var(sess.server)] if TRUE"]
    lines += [f"server {name} {name} weight 0" for name in sorted(servers)]
    return "\n  ".join(lines) + "\n"
