"""Our table as text: what it holds besides elements, and the elements of an order. Pure.

Text and not JSON on the way in, because nft before 1.1 refuses a map with concatenated data in
JSON. Every value that gets here was checked (addresses, ports, a deployment's name), so nothing
can be quoted wrongly.

The table (family inet, so that guests' IPv6 is fenced off by the same transaction):

    maps   exact, wildcard          listener → endpoint; a listener without an entry refuses
           spread, spread_wildcard  the same for several endpoints, by a counter modulo 60
    sets   listeners, wildcard_listeners   who owns a listener (in the element's comment)
           yielded, wildcard_yielded   those at ports that a program took
           orders                   generation and domain of a deployment (in the comment)
           resetting                endpoints whose connections are being reset
           fenced                   links that forward for our sake alone, and only to guests

The egress policy has a table of its own (`egress_rules.py`); what it does not mark stays here.

A table of the same name (family bridge) is made and deleted with it: it sees what comes
from taps before the host does, marks it, and limits how often a guest may ask for the gateway. The
filters on taps and bridge (`enclaves/tap_filter.py`) let only marked packets pass: so where our
tables are gone, guests are reached by nobody and reach nothing.

Why the dispatch looks twice: a lookup and the commit of a transaction race in kernels before 6.17,
so that one lookup may find neither the old nor the new entry. The second finds the new one.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent.model.enclave import Endpoint
from agent.model.marks import FROM_GUEST, MARK_MASK, TO_GUEST
from agent.model.resources import Listen
from agent.traffic import egress_rules
from agent.traffic.port import RouteOrder, TrafficError

SPREAD = 60  # divides evenly among 1 to 6 endpoints
FENCED = "fenced"
_PIECE = 40  # of a domain in a comment; the kernel keeps 128 bytes of each
_MAPS = {
    "exact": "type ipv4_addr . inet_service : ipv4_addr . inet_service",
    "wildcard": "type inet_service : ipv4_addr . inet_service",
    "spread": (f"typeof numgen inc mod {SPREAD} . ip daddr . tcp dport : ip daddr . tcp dport"),
    "spread_wildcard": f"typeof numgen inc mod {SPREAD} . tcp dport : ip daddr . tcp dport",
}
_SETS = {
    "listeners": "type ipv4_addr . inet_service",
    "wildcard_listeners": "type inet_service",
    "yielded": "type ipv4_addr . inet_service",
    "wildcard_yielded": "type inet_service",
    "orders": "type ipv6_addr",
    "resetting": "type ipv4_addr . inet_service",
    FENCED: "type ifname",
}
_BRIDGE_CHAIN = "from_guests"
_ARP_LIMIT = "limit rate over 10/second burst 50 packets"
_BRIDGE_SETS = {
    "asking": "type iface_index; flags dynamic,timeout; timeout 1m; size 65536",
}
# Only what is sent to this host, as the kernel says of each connection: an address that is another
# machine's, or has moved to one, is never answered for.
_NOT_OURS = "fib daddr type != local return"
_LOOKUP = (
    "dnat ip to ip daddr . tcp dport map @exact",
    "dnat ip to tcp dport map @wildcard",
)
_LOOKUP_SPREAD = (
    f"dnat ip to numgen inc mod {SPREAD} . ip daddr . tcp dport map @spread",
    f"dnat ip to numgen inc mod {SPREAD} . tcp dport map @spread_wildcard",
)


@dataclass(frozen=True)
class Base:
    """The table without its elements. Two bases are the same if their digests are."""

    table: str
    bridge: str
    subnet: str
    at_host: tuple[str, ...] = ()  # what of the host guests may reach (`egress_rules`)
    hairpin: bool = False  # whether guests reach listeners of this host as everybody does

    @functools.cached_property
    def chains(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Chain name → (hook line, rules)."""
        guest, subnet = f'iifname "{self.bridge}"', str(ipaddress.ip_network(self.subnet))
        to_guest = f'oifname "{self.bridge}"'
        # Probes, evidence requests: what is asked of an enclave is answered by that enclave.
        ours = f"meta mark and {MARK_MASK:#x} == {TO_GUEST:#x}"
        reset = "ct state != new ip daddr . tcp dport @resetting reject with tcp reset"
        refuse = "ct direction original ip daddr . tcp dport @listeners reject with tcp reset"
        by_listener = "ct status dnat"
        yielded = "ip daddr . tcp dport @yielded accept"
        return {
            "dispatch": ("", (_NOT_OURS, *_LOOKUP, *_LOOKUP_SPREAD, *_LOOKUP)),
            "spoofed": (
                "type filter hook prerouting priority raw; policy accept;",
                (
                    f"{guest} ip daddr 127.0.0.0/8 drop",
                    f"{guest} ip saddr != {subnet} drop",
                ),
            ),
            # 127.0.0.0/8 from outside is left to the kernel's own refusal of martians.
            "arriving": (
                "type nat hook prerouting priority dstnat; policy accept;",
                (
                    "ip daddr 127.0.0.0/8 return",
                    *(() if self.hairpin else (f"{guest} return",)),
                    "jump dispatch",
                ),
            ),
            "leaving": (
                "type nat hook output priority -100; policy accept;",
                (f"{ours} return", "jump dispatch"),
            ),
            "to_host": (
                "type filter hook input priority filter; policy accept;",
                (
                    # Out of a known connection's window: the host must not answer for a guest.
                    "ct state invalid ip daddr . tcp dport @listeners drop",
                    "ct state invalid tcp dport @wildcard_listeners drop",
                    *self._guest_to_host(guest),
                    # Whatever arrives here for a listener was sent to no endpoint.
                    yielded,
                    "tcp dport @wildcard_yielded accept",
                    refuse,
                    "ct direction original tcp dport @wildcard_listeners reject with tcp reset",
                ),
            ),
            "through_host": (
                "type filter hook forward priority filter; policy accept;",
                (
                    reset,
                    f"{guest} ct state established,related accept",
                    f"{to_guest} ct state established,related accept",
                    f"{guest} ct state invalid drop",
                    # What is left of a connection that was reset must not come up again as new.
                    f"{guest} tcp flags & (fin | syn | rst | ack) != syn drop",
                    f"{guest} meta nfproto ipv6 drop",
                    *((f"{guest} {to_guest} {by_listener} accept",) if self.hairpin else ()),
                    f"{guest} {to_guest} meta l4proto tcp reject with tcp reset",
                    f"{guest} {to_guest} reject with icmpx admin-prohibited",
                    f"{to_guest} {by_listener} accept",
                    f"{to_guest} meta l4proto tcp reject with tcp reset",
                    f"{to_guest} reject with icmpx admin-prohibited",
                    # What another program of the host translates goes on: its own guests, say.
                    f'iifname @{FENCED} oifname != "{self.bridge}" '
                    "ct status & (snat | dnat) == 0 drop",
                ),
            ),
            "from_host": (
                "type filter hook output priority filter; policy accept;",
                # By no other way: guests are not told of each other's addresses.
                (
                    reset,
                    f"{ours} accept",
                    f"{to_guest} icmp type redirect drop",
                    yielded,
                    f"fib daddr type local {refuse}",
                ),
            ),
            # Whatever gets here was let through, but what a guest opens the table of the egress
            # policy must have let out. (An output chain knows only the way that a packet was to
            # take before it was translated.)
            "to_guests": (
                "type filter hook postrouting priority filter; policy accept;",
                (f"{to_guest} {_mark(TO_GUEST)}", *egress_rules.gate(self.bridge, subnet)),
            ),
            "translated": (
                "type nat hook postrouting priority srcnat; policy accept;",
                (
                    f"{to_guest} ip saddr 127.0.0.0/8 masquerade",
                    # A guest that asks another by a listener: the answer must come back this way.
                    *((f"{to_guest} ip saddr {subnet} {by_listener} masquerade",) * self.hairpin),
                    f'oifname != "{self.bridge}" ip saddr {subnet} masquerade',
                ),
            ),
        }

    @functools.cached_property
    def bridge_chains(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """The same for the table of family bridge."""
        subnet = ipaddress.ip_network(self.subnet)
        return {
            _BRIDGE_CHAIN: (
                "type filter hook prerouting priority -300; policy accept;",
                (
                    f"arp daddr ip {subnet[1]} update @asking {{ iif {_ARP_LIMIT} }} drop",
                    f"ip saddr {subnet} {_mark(FROM_GUEST)}",
                ),
            )
        }

    @property
    def listed(self) -> tuple[tuple[str, ...], ...]:
        """What `nft list` is to show, the table of the orders first.

        Of the second table the chain alone: guests who ask change its set all the time.
        """
        return (
            ("table", "inet", self.table),
            ("chain", "bridge", self.table, _BRIDGE_CHAIN),
        )

    def _guest_to_host(self, guest: str) -> Iterator[str]:
        yield f"{guest} ct state established,related accept"
        for opened in self.at_host:
            yield f"{guest} meta nfproto ipv4 {opened} accept"
        yield f"{guest} meta l4proto tcp reject with tcp reset"
        yield f"{guest} meta nfproto ipv6 drop"
        yield f"{guest} reject with icmpx admin-prohibited"

    @functools.cached_property
    def digest(self) -> str:
        """Names this version of the rules, in the comment of each of them."""
        plain = repr((_MAPS, _SETS, self.chains, _BRIDGE_SETS, self.bridge_chains))
        return hashlib.sha256(plain.encode()).hexdigest()[:12]

    @functools.cached_property
    def comments(self) -> frozenset[tuple[str, str]]:
        """(chain, comment) of every rule that must be there, and none else."""
        return frozenset(
            (chain, f"{self.digest}/{index}")
            for chain, (_, rules) in {**self.chains, **self.bridge_chains}.items()
            for index in range(len(rules))
        )

    def text(self) -> str:
        """Statements that make both tables anew in place of what is there by their name."""
        inet = self._table("inet", {**_MAPS, **_SETS}, self.chains)
        return inet + self._table("bridge", _BRIDGE_SETS, self.bridge_chains)

    def removal(self) -> str:
        """Statements that leave nothing of them."""
        tables = (f"{family} {self.table}" for family in ("inet", "bridge"))
        return "".join(f"add table {table}\ndelete table {table}\n" for table in tables)

    def _table(
        self,
        family: str,
        items: Mapping[str, str],
        chains: Mapping[str, tuple[str, tuple[str, ...]]],
    ) -> str:
        name = f"{family} {self.table}"
        lines = [f"add table {name}", f"delete table {name}", f"add table {name}"]
        for item, kind in items.items():
            what = "map" if item in _MAPS else "set"
            lines.append(f"add {what} {name} {item} {{ {kind}; }}")
        for chain, (hook, _) in chains.items():
            lines.append(f"add chain {name} {chain}" + (f" {{ {hook} }}" if hook else ""))
        for chain, (_, rules) in chains.items():
            lines += [
                f'add rule {name} {chain} {rule} comment "{self.digest}/{index}"'
                for index, rule in enumerate(rules)
            ]
        return "\n".join(lines) + "\n"


def _mark(value: int) -> str:
    """Give a packet this mark, and leave what others say by the lower bits."""
    return f"meta mark set mark and {MARK_MASK ^ 0xFFFFFFFF:#x} or {value:#x}"


@dataclass(frozen=True, slots=True)
class SetElement:
    """What a set or map holds under a key: data (for a map) and comment, as text."""

    value: str | None = None
    comment: str | None = None


Key = tuple[str, str]  # set or map, key as text
Elements = Mapping[Key, SetElement]
MAPS = frozenset(_MAPS)


def elements_of(order: RouteOrder) -> dict[Key, SetElement]:
    """Everything that puts one order in force."""
    found: dict[Key, SetElement] = {}
    for index, binding in enumerate(order.bindings):
        listen = binding.listen
        name = "wildcard_listeners" if listen.is_wildcard else "listeners"
        if (name, listen_key(listen)) in found:
            raise TrafficError(f"{listen} is named twice in the order of {order.deployment}")
        found[name, listen_key(listen)] = SetElement(comment=f"{order.deployment} {index}")
        found.update(_targets(listen, binding.endpoints))
    for piece, text in enumerate(_pieces(order.domain)):
        identity = f"{order.deployment} {order.generation} {piece}"
        found["orders", _digest_key(identity)] = SetElement(comment=f"{identity} {text}")
    return found


def _targets(listen: Listen, endpoints: tuple[Endpoint, ...]) -> dict[Key, SetElement]:
    key = listen_key(listen)
    if len(endpoints) == 1:
        name = "wildcard" if listen.is_wildcard else "exact"
        return {(name, key): SetElement(value=endpoint_key(endpoints[0]))}
    if len(endpoints) > SPREAD:
        raise TrafficError(f"{listen} has {len(endpoints)} endpoints; {SPREAD} are the most")
    name = "spread_wildcard" if listen.is_wildcard else "spread"
    return {
        (name, f"{index} . {key}"): SetElement(
            value=endpoint_key(endpoints[index % len(endpoints)])
        )
        for index in range(SPREAD if endpoints else 0)
    }


def yield_change(table: str, old: Collection[Listen], new: Collection[Listen]) -> str:
    """Statements after which the ports of `new`, and no others, are left to who listens there."""
    changes = [("delete", one) for one in old if one not in new]
    changes += [("add", one) for one in new if one not in old]
    return "".join(
        f"{verb} element inet {table} {_yielding(one)} {{ {listen_key(one)} }}\n"
        for verb, one in changes
    )


def _yielding(listen: Listen) -> str:
    return "wildcard_yielded" if listen.is_wildcard else "yielded"


def listen_key(listen: Listen) -> str:
    """As nft prints it: the port alone for a wildcard."""
    return str(listen.port) if listen.is_wildcard else f"{listen.address} . {listen.port}"


def endpoint_key(endpoint: Endpoint) -> str:
    return f"{ipaddress.IPv4Address(endpoint.address)} . {endpoint.port}"


def _pieces(domain: str | None) -> list[str]:
    text = "-" if domain is None else f"={domain}"
    return [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]


def _digest_key(text: str) -> str:
    """A key that two writers can only share if they mean the same generation.

    An order is replaced by deleting the old key: a transaction that expects another generation
    than the one in force fails as a whole, even one that a dead agent's nft still carries.
    """
    digest = hashlib.sha256(text.encode()).digest()[:16]
    return str(ipaddress.IPv6Address(digest))


def change(table: str, old: Elements, new: Elements) -> str:
    """Statements from the old elements to the new ones; empty if there is no difference."""
    lines = [
        _statement("delete", table, key, SetElement())
        for key, element in old.items()
        if new.get(key) != element
    ]
    lines += [
        _statement("create" if key[0] == "orders" else "add", table, key, element)
        for key, element in new.items()
        if old.get(key) != element
    ]
    return "".join(lines)


def fence(table: str, old: Iterable[str], new: Iterable[str]) -> str:
    """Statements from the old fenced links to the new ones; empty if there is no difference."""
    lines = [("delete", link) for link in sorted(set(old) - set(new))]
    lines += [("add", link) for link in sorted(set(new) - set(old))]
    return "".join(
        f'{verb} element inet {table} {FENCED} {{ "{link}" }}\n' for verb, link in lines
    )


def _statement(verb: str, table: str, key: Key, element: SetElement) -> str:
    name, text = key
    comment = f' comment "{element.comment}"' if element.comment is not None else ""
    value = f" : {element.value}" if element.value is not None else ""
    return f"{verb} element inet {table} {name} {{ {text}{comment}{value} }}\n"
