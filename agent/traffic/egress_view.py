"""What the kernel says of the egress table: whether it is ours, and what it refused. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses, summarize_address_range
from typing import Any

from agent.model.egress import Refusal
from agent.traffic.egress_rules import OWN_NETWORKS, REFUSED, REFUSED_BARE, EgressRules
from agent.traffic.listing import understood

SHOWN = 20


@dataclass(frozen=True, slots=True)
class EgressView:
    """One listing. `refused`: the most frequent first, at most SHOWN."""

    intact: bool = False
    own_networks: tuple[IPv4Network, ...] = ()
    refused: tuple[Refusal, ...] = ()


def read(listing: bytes, rules: EgressRules) -> EgressView:
    """Parse what `nft -j list table` prints. Raises TrafficError."""
    with understood("nft"):
        return _view(listing, rules)


def _view(listing: bytes, rules: EgressRules) -> EgressView:
    items = json.loads(listing)["nftables"]
    sets = {body["name"]: body for item in items if (body := item.get("set")) is not None}
    refused = [one for name in (REFUSED, REFUSED_BARE) for one in _refusals(sets.get(name, {}))]
    refused.sort(key=lambda one: (-one.count, one.destination, one.protocol, one.port or 0))
    networks = (one for entry in _elements(sets, OWN_NETWORKS) for one in _network(entry))
    return EgressView(
        intact=_holds(items, rules),
        own_networks=tuple(collapse_addresses(networks)),
        refused=tuple(refused[:SHOWN]),
    )


def _elements(sets: Mapping[str, Any], name: str) -> list[Any]:
    found: list[Any] = sets.get(name, {}).get("elem", [])
    return found


def _network(entry: Any) -> Iterator[IPv4Network]:
    """An address, a prefix or a range, as nft prints intervals."""
    if isinstance(entry, str):
        yield IPv4Network(entry)
    elif "prefix" in entry:
        yield IPv4Network((entry["prefix"]["addr"], entry["prefix"]["len"]))
    else:
        first, last = map(IPv4Address, entry["range"])
        yield from summarize_address_range(first, last)


def _holds(items: list[dict[str, Any]], rules: EgressRules) -> bool:
    listed = [item["rule"] for item in items if "rule" in item]
    seen = [(str(rule["chain"]), str(rule.get("comment"))) for rule in listed]
    chains = [item["chain"] for item in items if "chain" in item]
    return (
        len(seen) == len(rules.comments)
        and frozenset(seen) == rules.comments
        and {chain["name"] for chain in chains} == rules.chains.keys()
        and all(chain.get("policy", "accept") == "accept" for chain in chains)
    )


def _refusals(body: Mapping[str, Any]) -> Iterator[Refusal]:
    for entry in body.get("elem", ()):
        element = entry["elem"]
        destination, protocol, *port = element["val"]["concat"]
        count = int(element.get("counter", {}).get("packets", 0))
        if count:
            yield Refusal(
                destination=str(destination),
                protocol=str(protocol),
                port=int(port[0]) if port else None,
                count=count,
            )
