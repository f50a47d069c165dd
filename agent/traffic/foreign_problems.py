"""What a person should mend of other programs' packet filters, with the way to do it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.host.network_news import NetworkProblem
from agent.traffic.foreign_rules import Chains, Drop, Packet, Table, dropped
from agent.traffic.legacy_rules import TABLE as LEGACY

_ANY_LINK = "any other link"  # stands for links of which nothing is known


def problems(
    chains: Chains, *, bridge: str, guests: ipaddress.IPv4Network, uplinks: Iterable[str]
) -> dict[str, NetworkProblem]:
    """One for each chain that drops what our guests need, by whatever link it comes or goes."""
    links = sorted(uplinks) or [_ANY_LINK]
    found: dict[tuple[Table, str], dict[_Kind, Drop]] = {}
    for kind in (*_CLIENTS, *_WORLD):
        packets = [kind.packet(link, bridge, guests) for link in links]
        drops = [{(d.table, d.chain): d for d in dropped(chains, one)} for one in packets]
        for key in set(drops[0]).intersection(*drops[1:]):
            found.setdefault(key, {})[kind] = drops[0][key]
    return {
        f"rules:{family}/{table}/{chain}": _problem((family, table), chain, kinds, chains, bridge)
        for ((family, table), chain), kinds in sorted(found.items())
    }


@dataclass(frozen=True, slots=True)
class _Kind:
    """A packet that guests cannot do without, whatever link is at its other end."""

    to_guest: bool
    state: str
    direction: str
    translated: str

    def packet(self, link: str, bridge: str, guests: ipaddress.IPv4Network) -> Packet:
        return Packet(
            came_in=link if self.to_guest else bridge,
            goes_out=bridge if self.to_guest else link,
            state=self.state,
            direction=self.direction,
            translated=self.translated,
            guest_is="daddr" if self.to_guest else "saddr",
            guests=guests,
            bridge=bridge,
        )


_CLIENTS = (
    _Kind(True, "new", "original", "dnat"),
    _Kind(False, "established", "reply", "dnat"),
    _Kind(True, "established", "original", "dnat"),
)
_WORLD = (
    _Kind(False, "new", "original", ""),
    _Kind(True, "established", "reply", "snat"),
    _Kind(False, "established", "original", "snat"),
)


def _problem(
    table: Table, chain: str, kinds: Mapping[_Kind, Drop], chains: Chains, bridge: str
) -> NetworkProblem:
    clients = not kinds.keys().isdisjoint(_CLIENTS)
    world = not kinds.keys().isdisjoint(_WORLD)
    cut = [
        *(["clients elsewhere do not reach any deployment"] * clients),
        *(["guests do not reach the world (images, keys, certificates)"] * world),
    ]
    drop = next(iter(kinds.values()))
    by = "by its policy" if drop.rule is None else f"by its rule with handle {drop.rule}"
    family, name = table
    return NetworkProblem(
        code="forward_dropped",
        severity="error" if clients else "warning",
        detail=f"another program's packet filter drops what is forwarded to or from {bridge}: "
        f"{' and '.join(cut)}: table {family} {name}, chain {chain}, {by}",
        mend=_mend(table, chain, chains.get(table, {}), bridge),
    )


def _mend(table: Table, chain: str, of: Iterable[str], bridge: str) -> str:
    """In the words of the program whose table it looks like."""
    family, name = table
    names = set(of)
    if name == "firewalld":
        return (
            f"`firewall-cmd --permanent --zone=trusted --add-interface={bridge} && "
            "firewall-cmd --reload`"
        )
    program = "iptables-legacy" if name == LEGACY else "iptables"
    if "DOCKER-USER" in names:
        return _iptables(program, "DOCKER-USER", bridge)
    if any(one.startswith("ufw-") for one in names):
        return f"`ufw route allow in on {bridge} && ufw route allow out on {bridge}`"
    if (family, chain) == ("ip", "FORWARD"):
        return _iptables(program, chain, bridge)
    where = f"{family} {name} {chain}"
    return (
        f"`nft insert rule {where} iifname {bridge} accept && "
        f"nft insert rule {where} oifname {bridge} accept`, and the same where that table is "
        "configured"
    )


def _iptables(program: str, chain: str, bridge: str) -> str:
    insert = f"{program} -I {chain}"
    return (
        f"`{insert} -i {bridge} -j ACCEPT && {insert} -o {bridge} -j ACCEPT`, and the same where "
        "the host keeps its rules for the next boot"
    )


def abandoned(table: str, bridge: str) -> NetworkProblem:
    """A table of an agent, and no bridge to it."""
    return NetworkProblem(
        code="table_left_behind",
        severity="warning",
        detail=f"the nftables table {table} looks like that of an agent whose bridge {bridge} is "
        "not there: what it has listeners for may be sent nowhere",
        mend=f"unless an agent with network.bridge: {bridge} is about to start on this host: "
        f"`nft delete table inet {table}; nft delete table bridge {table}`",
    )
