"""What the kernel says of our table, turned back into orders. Pure.

Nothing is remembered outside the kernel: the owner of a listener, its place in the order, the
generation and the domain stand in the comments of elements. A table whose rules are not exactly
ours, or whose elements are not exactly those of the orders that they tell of, is not intact: then
nothing is said to be in force, and the next order makes all of it anew.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.listing import understood
from agent.traffic.nftables_rules import (
    FENCED,
    MAPS,
    SPREAD,
    Base,
    Key,
    SetElement,
    elements_of,
)
from agent.traffic.port import Binding, RouteOrder

_YIELDED = frozenset({"yielded", "wildcard_yielded"})
_PASSING = _YIELDED | {"resetting", FENCED}  # of no order
_ANY = "0.0.0.0"  # noqa: S104 - the wildcard's listen address, not a socket's


@dataclass(frozen=True, slots=True)
class NftablesView:
    """One listing. `known` are the orders as far as they can be told, also of a broken table."""

    intact: bool = False
    elements: Mapping[Key, SetElement] = field(default_factory=dict)
    known: Mapping[DeploymentName, RouteOrder] = field(default_factory=dict)
    resetting: bool = False
    yielded: frozenset[Listen] = frozenset()
    fenced: frozenset[str] = frozenset()

    def owner(self, key: Key) -> str | None:
        """The deployment that an element belongs to."""
        name, text = key
        element = self.elements.get(key)
        if name in MAPS:
            listeners = "wildcard_listeners" if "wildcard" in name else "listeners"
            listen = text.split(" . ", 1)[1] if name.startswith("spread") else text
            element = self.elements.get((listeners, listen))
        comment = element.comment if element is not None else None
        return comment.split(" ")[0] if comment else None

    def owned_by(self, deployment: DeploymentName) -> dict[Key, SetElement]:
        return {
            key: element for key, element in self.elements.items() if self.owner(key) == deployment
        }

    def others(self, deployment: DeploymentName) -> list[RouteOrder]:
        return [order for name, order in self.known.items() if name != deployment]


def read(listing: bytes, base: Base) -> NftablesView:
    """Parse what `nft -j` lists: one document a table. Raises TrafficError."""
    with understood("nft"):
        return _view(listing, base)


def _view(listing: bytes, base: Base) -> NftablesView:
    items = list(_items(listing.decode()))
    elements: dict[Key, SetElement] = {}
    for item in items:
        body = item.get("set") or item.get("map")
        if body is not None:
            elements.update(_elements(body))
    resetting = any(name == "resetting" for name, _ in elements)
    kept = {key: value for key, value in elements.items() if key[0] not in _PASSING}
    known = _orders(kept)
    whole: dict[Key, SetElement] = {}
    for order in known.values():
        whole.update(elements_of(order))
    return NftablesView(
        intact=whole == kept and _rules_hold(items, base),
        elements=kept,
        known=known,
        resetting=resetting,
        yielded=frozenset(_listen(key) for name, key in elements if name in _YIELDED),
        fenced=frozenset(link for name, link in elements if name == FENCED),
    )


def _items(text: str) -> Iterator[dict[str, Any]]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text.rstrip()):
        document, at = decoder.raw_decode(text, at)
        yield from document["nftables"]
        while text[at : at + 1].isspace():
            at += 1


def _rules_hold(items: list[dict[str, Any]], base: Base) -> bool:
    rules = [item["rule"] for item in items if "rule" in item]
    seen = [(str(rule["chain"]), str(rule.get("comment"))) for rule in rules]
    chains = [item["chain"] for item in items if "chain" in item]
    return (
        len(seen) == len(base.comments)
        and frozenset(seen) == base.comments
        and {chain["name"] for chain in chains} == {*base.chains, *base.bridge_chains}
        and all(chain.get("policy", "accept") == "accept" for chain in chains)
    )


def _elements(body: Mapping[str, Any]) -> Iterator[tuple[Key, SetElement]]:
    name = str(body["name"])
    for entry in body.get("elem", ()):
        left, right = entry if isinstance(entry, list) else (entry, None)
        comment: str | None = None
        if isinstance(left, dict) and "elem" in left:
            comment = left["elem"].get("comment")
            left = left["elem"]["val"]
        value = _text(right) if right is not None else None
        yield (name, _text(left)), SetElement(value=value, comment=comment)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " . ".join(_text(part) for part in value["concat"])
    if isinstance(value, str) and ":" in value:
        return str(ipaddress.ip_address(value))
    return str(value)


def _orders(elements: Mapping[Key, SetElement]) -> dict[DeploymentName, RouteOrder]:
    pieces: dict[str, dict[int, tuple[int, str]]] = {}
    bindings: dict[str, list[tuple[int, Binding]]] = {}
    for (name, key), element in elements.items():
        words = (element.comment or "").split(" ")
        if name == "orders" and len(words) == 4 and words[1].isdigit() and words[2].isdigit():
            pieces.setdefault(words[0], {})[int(words[2])] = (int(words[1]), words[3])
        elif name.endswith("listeners") and len(words) == 2 and words[1].isdigit():
            bindings.setdefault(words[0], []).append((int(words[1]), _binding(key, elements)))
    found = {}
    for deployment, parts in pieces.items():
        text = "".join(part for _, (_, part) in sorted(parts.items()))
        found[DeploymentName(deployment)] = RouteOrder(
            deployment=DeploymentName(deployment),
            generation=max(generation for generation, _ in parts.values()),
            bindings=tuple(one for _, one in sorted(bindings.get(deployment, ()), key=_place)),
            domain=text[1:] if text.startswith("=") else None,
        )
    return found


def _place(numbered: tuple[int, Binding]) -> int:
    return numbered[0]


def _binding(key: str, elements: Mapping[Key, SetElement]) -> Binding:
    wildcard = " . " not in key
    single = elements.get(("wildcard" if wildcard else "exact", key))
    spread = "spread_wildcard" if wildcard else "spread"
    targets = [elements.get((spread, f"{index} . {key}")) for index in range(SPREAD)]
    values = [one.value for one in (single, *targets) if one is not None and one.value]
    return Binding(
        listen=_listen(key),
        endpoints=tuple(_endpoint(value) for value in dict.fromkeys(values)),
    )


def _listen(key: str) -> Listen:
    address, _, port = (key if " . " in key else f"{_ANY} . {key}").partition(" . ")
    return Listen(address=address, port=int(port))


def _endpoint(value: str) -> Endpoint:
    address, _, port = value.partition(" . ")
    return Endpoint(address=address, port=int(port))
