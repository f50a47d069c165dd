"""What a HAProxy process has in force, from its own answers. Pure.

Nothing is remembered outside the process: the generation, the domain and the order of listeners
stand in the value of a route. A deployment is in force only if its route, the members of its
edition, its servers and its listeners are all there and exactly as they follow from the route.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent.errors import AgentError
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.haproxy_config import (
    BACKEND,
    frontend_name,
    layout_of,
    members_of,
    parse_route,
    server_name,
)
from agent.traffic.listing import understood
from agent.traffic.port import RouteOrder

_FRONTEND, _SERVER = "0", "2"
_OPEN, _PAUSED, _FULL = "OPEN", "PAUSED", "FULL"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of `show stat`: listeners and their states, usable servers, sessions of all servers."""

    frontends: Mapping[str, str] = field(default_factory=dict)
    servers: frozenset[str] = frozenset()
    sessions: Mapping[str, int] = field(default_factory=dict)
    clients: int = 0


@dataclass(frozen=True, slots=True)
class HaproxyView:
    """One look. `intact`: the maps and listeners are exactly those of `known`."""

    intact: bool
    known: Mapping[DeploymentName, RouteOrder]
    editions: Mapping[DeploymentName, int]
    members: Mapping[str, str]
    statistics: Statistics

    @property
    def next_edition(self) -> int:
        return max((0, *self.editions.values(), *map(_edition_of, self.members))) + 1

    @property
    def garbage(self) -> list[str]:
        """Members of editions that no route names: an older one's, or a dead agent's."""
        used = set(self.editions.values())
        return [key for key in self.members if _edition_of(key) not in used]

    def states(self) -> dict[str, str]:
        """The state of each listener that follows from the routes."""
        found: dict[str, str] = {}
        for order in self.known.values():
            for binding in order.bindings:
                name = frontend_name(binding.listen)
                serving = binding.endpoints or found.get(name) == _OPEN
                found[name] = _OPEN if serving else _PAUSED
        return found

    def corrections(self) -> list[str]:
        """Commands after which the listeners are in the states that follow from the routes.

        One that was shut down comes back with another process only.
        """
        verbs = {_OPEN: "enable", _PAUSED: "disable"}
        return [
            f"{verbs[wanted]} frontend {name}"
            for name, wanted in self.states().items()
            if self.statistics.frontends.get(name) in {_OPEN, _PAUSED} - {wanted}
        ]

    def to_pause(self) -> frozenset[Listen]:
        """Listeners that are to refuse, by the routes."""
        return self._in_state(self.states())

    def paused(self) -> frozenset[Listen]:
        """Listeners that refuse now. HAProxy shares their ports with whoever asks for that."""
        return self._in_state(self.statistics.frontends)

    def _in_state(self, states: Mapping[str, str]) -> frozenset[Listen]:
        bindings = (binding for order in self.known.values() for binding in order.bindings)
        listens = {binding.listen for binding in bindings}
        return frozenset(one for one in listens if states.get(frontend_name(one)) == _PAUSED)

    def in_force(self) -> dict[DeploymentName, RouteOrder]:
        """The orders that hold wholly."""
        amiss = {
            name
            for name, wanted in self.states().items()
            if self.statistics.frontends.get(name) != wanted
        }
        return {
            name: order
            for name, order in self.known.items()
            if amiss.isdisjoint(frontend_name(binding.listen) for binding in order.bindings)
        }


def read(routes: str, members: str, statistics: str) -> HaproxyView:
    """From `show map` of both maps and `show stat`."""
    found = parse_statistics(statistics)
    present = dict(_entries(members))
    known: dict[DeploymentName, RouteOrder] = {}
    editions: dict[DeploymentName, int] = {}
    intact = True
    for key, value in _entries(routes):
        try:
            edition, order = parse_route(key, value)
        except (ValueError, AgentError):
            intact = False
            continue
        if _whole(edition, order, present, found):
            known[order.deployment], editions[order.deployment] = order, edition
        else:
            intact = False
    names = {frontend_name(listen) for listen in layout_of(known.values())}
    listening = {name for name, state in found.frontends.items() if state in (_OPEN, _PAUSED)}
    return HaproxyView(
        intact=intact and names == listening,
        known=known,
        editions=editions,
        members=present,
        statistics=found,
    )


def parse_statistics(text: str) -> Statistics:
    """Of `show stat`. A server counts only under the address that it is named by.

    Raises TrafficError for what is none.
    """
    with understood("haproxy"):
        return _statistics(text)


def _statistics(text: str) -> Statistics:
    frontends: dict[str, str] = {}
    usable: set[str] = set()
    sessions: dict[str, int] = {}
    clients = 0
    for row in csv.DictReader(text.removeprefix("# ").strip().splitlines()):
        if row["type"] == _FRONTEND:
            frontends[row["pxname"]] = _OPEN if row["status"] == _FULL else row["status"]
            clients += int(row["scur"])
        elif row["type"] == _SERVER and row["pxname"] == BACKEND:
            sessions[row["svname"]] = int(row["scur"])
            if row["addr"] == row["svname"] and not row["status"].startswith("MAINT"):
                usable.add(row["svname"])
    return Statistics(frontends, frozenset(usable), sessions, clients)


def _whole(edition: int, order: RouteOrder, members: Mapping[str, str], found: Statistics) -> bool:
    wanted = members_of(edition, order)
    own = {key: value for key, value in members.items() if _edition_of(key) == edition}
    servers = {server_name(one) for binding in order.bindings for one in binding.endpoints}
    return wanted == own and servers <= found.servers


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Of `show map`: a pointer, the key, the value."""
    for line in text.splitlines():
        if fields := line.split(" ", 2)[1:]:
            yield fields[0], fields[1] if len(fields) > 1 else ""


def _edition_of(key: str) -> int:
    number = key.partition("/")[0]
    return int(number) if number.isdecimal() else 0
