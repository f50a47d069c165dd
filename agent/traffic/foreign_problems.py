"""What a person should mend of other programs' packet filters, with the way to do it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from agent.host.network_news import NetworkProblem
from agent.traffic.foreign_rules import Chains, Drop, Packet, Table, dropped

_ANY_LINK = "any other link"  # stands for links of which nothing is known


def problems(
    chains: Chains, *, bridge: str, guests: ipaddress.IPv4Network, uplinks: Iterable[str]
) -> dict[str, NetworkProblem]:
    """One for each chain that drops what our guests need, by whatever link it comes or goes."""
    links = sorted(uplinks) or [_ANY_LINK]
    found: dict[tuple[Table, str], dict[str, Drop]] = {}
    for kind, make in _KINDS.items():
        drops = [
            {
                (drop.table, drop.chain): drop
                for drop in dropped(chains, make(link, bridge, guests))
            }
            for link in links
        ]
        everywhere = set(drops[0]).intersection(*drops[1:])
        for key in everywhere:
            found.setdefault(key, {})[kind] = drops[0][key]
    return {
        f"rules:{family}/{table}/{chain}": _problem((family, table), chain, kinds, chains, bridge)
        for ((family, table), chain), kinds in sorted(found.items())
    }


def _to_guest(link: str, bridge: str, guests: ipaddress.IPv4Network) -> Packet:
    return Packet(link, bridge, "new", "original", True, "daddr", guests, bridge)


def _answer(link: str, bridge: str, guests: ipaddress.IPv4Network) -> Packet:
    return Packet(bridge, link, "established", "reply", True, "saddr", guests, bridge)


def _to_world(link: str, bridge: str, guests: ipaddress.IPv4Network) -> Packet:
    return Packet(bridge, link, "new", "original", False, "saddr", guests, bridge)


_KINDS = {"clients": _to_guest, "answers": _answer, "world": _to_world}


def _problem(
    table: Table, chain: str, kinds: Mapping[str, Drop], chains: Chains, bridge: str
) -> NetworkProblem:
    clients = "clients" in kinds or "answers" in kinds
    cut = [
        *(["clients elsewhere do not reach any deployment"] if clients else []),
        *(["guests do not reach the world (images, keys, certificates)"] * ("world" in kinds)),
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
    if "DOCKER-USER" in names:
        return _iptables("DOCKER-USER", bridge)
    if any(one.startswith("ufw-") for one in names):
        return f"`ufw route allow in on {bridge} && ufw route allow out on {bridge}`"
    if (family, chain) == ("ip", "FORWARD"):
        return _iptables(chain, bridge)
    where = f"{family} {name} {chain}"
    return (
        f"`nft insert rule {where} iifname {bridge} accept && "
        f"nft insert rule {where} oifname {bridge} accept`, and the same where that table is "
        "configured"
    )


def _iptables(chain: str, bridge: str) -> str:
    return (
        f"`iptables -I {chain} -i {bridge} -j ACCEPT && iptables -I {chain} -o {bridge} -j ACCEPT`"
        ", and the same where the host keeps its rules for the next boot"
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
