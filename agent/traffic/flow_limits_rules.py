"""The table of limits as text: what a guest may open, and what may be opened to a guest. Pure.

It is a table of its own (family inet), beside the one with the routes: sets that packets change
are no part of what is read back of the routes, and where a kernel cannot have this table the
routes are served all the same. Only the first packet of a flow is looked at, before the kernel
has taken the flow into its connection table, so that a refused one takes no place there.

    guests      what came from the guests' bridge: flows by guest
    clients     what was translated to a guest, from outside and from the host itself: connections
                by guest, and by guest and source. The agent's own sockets are never translated.
    refused     how many packets were refused, by guest and limit (its place in `REASONS`)

The kernel walks all flows of an element for each that is added to it. So those of a guest are
spread over elements of about 64, by a hash: an element is full a little before the guest is.
A refused packet is dropped, not answered: answers to a flood are a flood.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass

from agent.traffic.limits import (
    DEPLOYMENT_CONNECTIONS,
    DEPLOYMENT_CONNECTIONS_PER_S,
    GUEST_FLOWS,
    GUEST_FLOWS_PER_S,
    SOURCE_CONNECTIONS,
    Limits,
)

REASONS = (
    GUEST_FLOWS,
    GUEST_FLOWS_PER_S,
    DEPLOYMENT_CONNECTIONS,
    DEPLOYMENT_CONNECTIONS_PER_S,
    SOURCE_CONNECTIONS,
)
_AN_ELEMENT = 64  # flows
_GUESTS = 1 << 16  # the largest subnet
_ELEMENTS = 1 << 17  # of guests and of sources; where a set is full, what is wider still limits
_BUCKET = "numgen inc mod 65536"  # only for its type: a number
_RATE = "flags dynamic,timeout; timeout 1m; size {}"
_BEGINS = "ct state new ct status ! confirmed"
_PORTS = "ip saddr . ip daddr . th sport . th dport"
_TRANSLATED = -50  # after translation (-100), before every filter (0)


@dataclass(frozen=True, slots=True)
class LimitsTable:
    """Two of them are the same if their digests are."""

    name: str
    bridge: str
    subnet: str
    limits: Limits

    @property
    def chains(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Chain name → (hook line, rules)."""
        subnet = ipaddress.ip_network(self.subnet)
        to_guest = f"{_BEGINS} ct status dnat ip daddr {subnet} jump clients"
        hook = "type filter hook {} priority {}; policy accept;"
        return {
            "guests": ("", tuple(self._guests())),
            "clients": ("", tuple(self._clients())),
            "arriving": (
                hook.format("prerouting", _TRANSLATED),
                (f'iifname "{self.bridge}" {_BEGINS} jump guests', to_guest),
            ),
            "leaving": (hook.format("output", _TRANSLATED), (to_guest,)),
        }

    def _guests(self) -> Iterator[str]:
        limits = self.limits
        speed = f"ip saddr limit {_rate(limits.guest_flows_per_s)}"
        yield f"update @guest_rates {{ {speed} }} {_refuse(GUEST_FLOWS_PER_S, 'ip saddr')}"
        yield 'meta l4proto tcp ct timeout set "streams"'
        refuse = _refuse(GUEST_FLOWS, "ip saddr")
        for of, spread in (
            ("meta l4proto { tcp, udp }", _PORTS),
            ("meta l4proto != { tcp, udp }", "ip saddr . ip daddr"),
        ):
            counted = _counted("ip saddr", spread, limits.guest_flows)
            yield f"{of} add @guest_flows {{ {counted} }} {refuse}"

    def _clients(self) -> Iterator[str]:
        limits = self.limits
        speed = f"ip daddr limit {_rate(limits.deployment_connections_per_s)}"
        refuse = _refuse(DEPLOYMENT_CONNECTIONS_PER_S, "ip daddr")
        yield f"update @client_rates {{ {speed} }} {refuse}"
        yield 'meta l4proto tcp ct timeout set "streams"'
        counted = _counted("ip daddr . ip saddr", _PORTS, limits.source_connections)
        yield f"add @sources {{ {counted} }} {_refuse(SOURCE_CONNECTIONS, 'ip daddr')}"
        counted = _counted("ip daddr", _PORTS, limits.deployment_connections)
        yield f"add @clients {{ {counted} }} {_refuse(DEPLOYMENT_CONNECTIONS, 'ip daddr')}"

    @property
    def sets(self) -> dict[str, str]:
        """Those that packets change; none is ever written by the agent."""
        dynamic = f"flags dynamic; size {_ELEMENTS}"
        return {
            "guest_rates": f"type ipv4_addr; {_RATE.format(_GUESTS)}",
            "client_rates": f"type ipv4_addr; {_RATE.format(_GUESTS)}",
            "guest_flows": f"typeof ip saddr . {_BUCKET}; {dynamic}",
            "clients": f"typeof ip daddr . {_BUCKET}; {dynamic}",
            "sources": f"typeof ip daddr . ip saddr . {_BUCKET}; {dynamic}",
            "refused": f"type ipv4_addr . mark; flags dynamic; size {len(REASONS) * _GUESTS}",
        }

    @property
    def _streams(self) -> str:
        """Of TCP. What keeps a place in the table longest is what nobody has ended."""
        policy = f"established: {self.limits.idle_s}, syn_sent: 60, syn_recv: 60, time_wait: 60"
        return f"protocol tcp; l3proto ip; policy = {{ {policy} }};"

    @property
    def digest(self) -> str:
        plain = repr((self.chains, self.sets, self._streams))
        return hashlib.sha256(plain.encode()).hexdigest()[:12]

    def text(self) -> str:
        """Statements that make the table anew."""
        name = f"inet {self.name}"
        lines = [f"add table {name}", f"delete table {name}", f"add table {name}"]
        lines.append(f"add ct timeout {name} streams {{ {self._streams} }}")
        lines += [f"add set {name} {of} {{ {kind}; }}" for of, kind in self.sets.items()]
        for chain, (hook, _) in self.chains.items():
            lines.append(f"add chain {name} {chain}" + (f" {{ {hook} }}" if hook else ""))
        digest = self.digest
        for chain, (_, rules) in self.chains.items():
            lines += [
                f'add rule {name} {chain} {rule} comment "{digest}/{index}"'
                for index, rule in enumerate(rules)
            ]
        return "\n".join(lines) + "\n"

    def removal(self) -> str:
        return f"add table inet {self.name}\ndelete table inet {self.name}\n"

    @property
    def comments(self) -> tuple[tuple[str, str | None], ...]:
        """(chain, comment) of every rule that must be there, and none else."""
        digest = self.digest
        return tuple(
            (chain, f"{digest}/{index}")
            for chain, (_, rules) in self.chains.items()
            for index in range(len(rules))
        )


def _rate(per_s: int) -> str:
    return f"rate over {per_s}/second burst {2 * per_s} packets"


def _counted(key: str, spread: str, limit: int) -> str:
    """Elements for so many flows in all, and in none of them more than its part."""
    elements = max(1, limit // _AN_ELEMENT)
    return f"{key} . jhash {spread} mod {elements} ct count over {limit // elements}"


def _refuse(reason: str, guest: str) -> str:
    """The mark is there for the key alone: the packet goes no further."""
    number = REASONS.index(reason)
    return f"meta mark set {number} add @refused {{ {guest} . meta mark counter }} drop"


def refused_in(listing: bytes) -> dict[str, dict[str, int]]:
    """Guest's address → limit → packets refused, from what `nft -j` lists of the set."""
    found: dict[str, dict[str, int]] = {}
    for item in json.loads(listing)["nftables"]:
        for entry in item.get("set", {}).get("elem", ()):
            element = entry.get("elem", {})
            if "counter" in element:
                guest, number = element["val"]["concat"]
                reason = REASONS[int(number)]
                found.setdefault(str(guest), {})[reason] = int(element["counter"]["packets"])
    return found
