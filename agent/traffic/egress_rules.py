"""The table that holds guests to the egress policy, as text. Pure.

It has a hook of its own after our other table's. What it lets out it marks, and the other table
lets nothing of a guest's out without that mark: so where this table is gone, guests reach nothing
beyond the host. It looks at every packet of a connection that a guest opened, so that a stricter
policy ends the connections of the one before; answers to clients are not its business.

    sets   own_networks   what the host itself is on; followed as it changes
           neighbours     addresses on those that guests speak to, each an entry in the host's
                          neighbour table: so they are bounded, all guests' together
           asking         guests that ask for new neighbours, each with a measure of its own
           refused        connections and datagrams by destination, protocol and port
           refused_bare   the same for protocols without ports

Metadata addresses are looked for in what the guest asked for, too: a provider's agent on the host
may have translated that to an address of its own.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from agent.model.egress import METADATA, EgressPolicy, GuestEgress
from agent.model.marks import LET_OUT, MARK_MASK

OWN_NETWORKS = "own_networks"
REFUSED, REFUSED_BARE = "refused", "refused_bare"
_NEIGHBOURS = 512  # half of the kernel's default for its table (net.ipv4.neigh.default.gc_thresh3)
_NEW_NEIGHBOURS = "limit rate over 1/second burst 32 packets"
_COUNTED = 2048  # destinations; those of a scan go after a while, those that are asked for stay
_SETS = {
    OWN_NETWORKS: "type ipv4_addr; flags interval",
    "neighbours": f"type ipv4_addr; flags dynamic,timeout; timeout 2m; size {_NEIGHBOURS}",
    "asking": "type ipv4_addr; flags dynamic,timeout; timeout 2m; size 65536",
    REFUSED: (
        "type ipv4_addr . inet_proto . inet_service; flags dynamic,timeout; timeout 1h; "
        f"size {_COUNTED}"
    ),
    REFUSED_BARE: (
        f"type ipv4_addr . inet_proto; flags dynamic,timeout; timeout 1h; size {_COUNTED}"
    ),
}
_WITH_PORTS = "meta l4proto { tcp, udp }"


@dataclass(frozen=True)
class EgressRules:
    """The table without its elements. Two are the same if their digests are."""

    table: str
    bridge: str
    at_host: tuple[str, ...]  # what of the host guests may reach, as `open_at_host` says it
    policy: EgressPolicy

    @functools.cached_property
    def chains(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Chain name → (hook line, rules)."""
        guest = f'iifname "{self.bridge}"'
        metadata = _some(METADATA)
        return {
            "refusing": ("", tuple(self._refusing())),
            "neighbouring": (
                "",
                (
                    "ip daddr @neighbours update @neighbours { ip daddr } return",
                    f"update @asking {{ ip saddr {_NEW_NEIGHBOURS} }} goto refusing",
                    "add @neighbours { ip daddr } return",
                    "goto refusing",
                ),
            ),
            "opening": (
                "",
                (
                    f"ct state new ip daddr @{OWN_NETWORKS} jump neighbouring",
                    f"meta mark set mark and {MARK_MASK ^ 0xFFFFFFFF:#x} or {LET_OUT:#x} accept",
                ),
            ),
            "through_host": (
                "type filter hook forward priority filter + 10; policy accept;",
                (
                    f'iifname != "{self.bridge}" accept',
                    f'oifname "{self.bridge}" accept',
                    "ct direction reply accept",
                    f"ct original ip daddr {metadata} goto refusing",
                    f"ip daddr {metadata} goto refusing",
                    *self._policy(),
                ),
            ),
            # Before our other table, which refuses the same without a count.
            "to_host": (
                "type filter hook input priority filter - 10; policy accept;",
                (
                    f"{guest} ct direction original ct original ip daddr {metadata} goto refusing",
                    *self._counted_at_host(guest),
                ),
            ),
        }

    def _refusing(self) -> Iterator[str]:
        yield f"{_WITH_PORTS} ct state new {_count(REFUSED, 'th dport')}"
        yield f"meta l4proto != {{ tcp, udp }} ct state new {_count(REFUSED_BARE)}"
        yield "meta l4proto tcp reject with tcp reset"
        yield "reject with icmpx admin-prohibited"

    def _policy(self) -> Iterator[str]:
        for port, networks in self.policy.allowed_by_port.items():
            where = f"ip daddr {_some(networks)}"
            through = "" if port is None else f" {_WITH_PORTS} th dport {port}"
            yield f"{where}{through} goto opening"
        if self.policy.mode is GuestEgress.NONE:
            yield "goto refusing"
            return
        yield f"ip daddr {_some(self.policy.closed)} goto refusing"
        if self.policy.closes_own_networks:
            yield f"ip daddr @{OWN_NETWORKS} goto refusing"
        yield "goto opening"

    def _counted_at_host(self, guest: str) -> Iterator[str]:
        new = f"{guest} meta nfproto ipv4 ct state new"
        for opened in self.at_host:
            yield f"{new} {opened} accept"
        yield f"{new} {_WITH_PORTS} {_count(REFUSED, 'th dport')}"
        yield f"{new} meta l4proto != {{ tcp, udp }} {_count(REFUSED_BARE)}"

    @functools.cached_property
    def digest(self) -> str:
        """Names this version of the rules, in the comment of each of them."""
        return hashlib.sha256(repr((_SETS, self.chains)).encode()).hexdigest()[:12]

    @functools.cached_property
    def comments(self) -> frozenset[tuple[str, str]]:
        """(chain, comment) of every rule that must be there, and none else."""
        return frozenset(
            (chain, f"{self.digest}/{index}")
            for chain, (_, rules) in self.chains.items()
            for index in range(len(rules))
        )

    def text(self, own_networks: Iterable[IPv4Network]) -> str:
        """Statements that make the table anew in place of what is there by its name."""
        name = f"inet {self.table}"
        lines = [f"add table {name}", f"delete table {name}", f"add table {name}"]
        lines += [f"add set {name} {item} {{ {kind}; }}" for item, kind in _SETS.items()]
        for chain, (hook, _) in self.chains.items():
            lines.append(f"add chain {name} {chain}" + (f" {{ {hook} }}" if hook else ""))
        for chain, (_, rules) in self.chains.items():
            lines += [
                f'add rule {name} {chain} {rule} comment "{self.digest}/{index}"'
                for index, rule in enumerate(rules)
            ]
        return "\n".join(lines) + "\n" + self.following(own_networks)

    def following(self, own_networks: Iterable[IPv4Network]) -> str:
        """Statements that have the host's networks in the table, and no others."""
        where = f"inet {self.table} {OWN_NETWORKS}"
        found = tuple(own_networks)
        added = f"add element {where} {_some(found)}\n" if found else ""
        return f"flush set {where}\n{added}"

    def removal(self) -> str:
        """Statements that leave nothing of it."""
        return f"add table inet {self.table}\ndelete table inet {self.table}\n"


def open_at_host(host_ports: Iterable[int]) -> tuple[str, ...]:
    """Conditions under which a guest's new connection to the host itself is let in."""
    ports = ", ".join(map(str, sorted(set(host_ports))))
    return (f"tcp dport {{ {ports} }}",) if ports else ()


def gate(bridge: str, subnet: str) -> tuple[str, ...]:
    """The rules by which our other table lets out only what this one has marked.

    For a hook after routing, before sources are translated. Two, because a packet that the kernel
    does not track has no direction: it must be marked, too.
    """
    out = f'oifname != "{bridge}" ip saddr {subnet}'
    marked = f"meta mark and {MARK_MASK:#x} != {LET_OUT:#x}"
    return (f"{out} ct direction reply accept", f"{out} {marked} drop")


def _some(networks: Iterable[IPv4Network]) -> str:
    return f"{{ {', '.join(map(str, networks))} }}"


def _count(name: str, *more: str) -> str:
    key = " . ".join(("ip daddr", "meta l4proto", *more))
    return f"update @{name} {{ {key} counter }}"
