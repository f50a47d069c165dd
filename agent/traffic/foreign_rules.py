"""What other programs' packet filters do to our guests' traffic, read from their rules. Pure.

A packet that our table lets through still passes every other base chain of the forward hook, and
any of them may drop it. So their rules are followed as the kernel would, for packets of three
kinds. Not every expression is understood (extensions of iptables, sets, marks): a rule that has
one is passed over, unless it names our bridge or our guests and accepts: that is how a person lets
our traffic through.

Source of the form: libnftables-json(5).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_DEEPEST = 16  # jumps; the kernel's own limit
_DROPS = ("drop", "reject")
_FAMILIES = ("ip", "inet")

Rule = Mapping[str, Any]
Table = tuple[str, str]  # family, name


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP packet on its way through the host. `guest_is`: which address is a guest's."""

    came_in: str
    goes_out: str
    state: str  # new, established
    direction: str  # original, reply
    translated: str  # dnat, snat; empty: not yet
    guest_is: str  # saddr, daddr
    guests: ipaddress.IPv4Network
    bridge: str


@dataclass(slots=True)
class Chain:
    """A base chain has a hook and a policy."""

    hook: str | None = None
    policy: str = "accept"
    rules: list[Rule] = field(default_factory=list)


Chains = dict[Table, dict[str, Chain]]


def forwarding_tables(items: Iterable[Mapping[str, Any]]) -> list[Table]:
    """Those with a base chain of the forward hook for IPv4, from a listing of chains."""
    chains = [item["chain"] for item in items if "chain" in item]
    found = [
        (str(chain["family"]), str(chain["table"]))
        for chain in chains
        if chain.get("hook") == "forward" and chain["family"] in _FAMILIES
    ]
    return sorted(set(found))


def chains_of(items: Iterable[Mapping[str, Any]]) -> Chains:
    """The chains of listed tables, with their rules in order."""
    found: Chains = {}
    for item in items:
        if (chain := item.get("chain")) is not None:
            of = found.setdefault((chain["family"], chain["table"]), {})
            of[chain["name"]] = Chain(chain.get("hook"), chain.get("policy", "accept"))
        elif (rule := item.get("rule")) is not None:
            of = found.setdefault((rule["family"], rule["table"]), {})
            of.setdefault(rule["chain"], Chain()).rules.append(rule)
    return found


@dataclass(frozen=True, slots=True)
class Drop:
    """Where a packet ends. `rule`: the handle of the rule; None: the policy."""

    table: Table
    chain: str
    rule: int | None = None


def dropped(chains: Chains, packet: Packet) -> list[Drop]:
    """Every base chain of the forward hook that does not let it through."""
    found = []
    for table, of in chains.items():
        for name, chain in of.items():
            if chain.hook != "forward" or table[0] not in _FAMILIES:
                continue
            verdict, rule = _walk(of, name, packet, 0)
            if verdict is None:
                verdict, rule = chain.policy, None
            if verdict in _DROPS:
                found.append(Drop(table, name, rule))
    return found


def _walk(
    chains: Mapping[str, Chain], name: str, packet: Packet, depth: int
) -> tuple[str | None, int | None]:
    """The verdict with the handle of its rule; None: the packet gets to the chain's end."""
    if depth > _DEEPEST or name not in chains:
        return None, None
    for rule in chains[name].rules:
        verdict, target = _judge(rule.get("expr", ()), packet)
        if verdict in ("accept", *_DROPS):
            return verdict, rule.get("handle")
        if verdict == "return":
            return None, None
        if verdict in ("jump", "goto"):
            inner, handle = _walk(chains, target, packet, depth + 1)
            if inner is not None or verdict == "goto":
                return inner, handle
    return None, None


def _judge(statements: Iterable[Mapping[str, Any]], packet: Packet) -> tuple[str | None, str]:
    """What one rule decides about the packet, and where it sends it to."""
    certain, about_us = True, False
    for statement in statements:
        for kind, body in statement.items():
            if kind in ("match", "limit", "quota", "xt") and not _is_target(kind, body):
                holds = _holds(kind, body, packet)
                if holds is False:
                    return None, ""
                certain = certain and holds is True
                about_us = about_us or (holds is True and _names_us(body, packet))
                continue
            verdict, target = _verdict(kind, body, packet)
            if verdict is not None:
                applies = certain or (about_us and verdict not in _DROPS)
                return (verdict, target) if applies else (None, "")
    return None, ""


def _is_target(kind: str, body: Any) -> bool:
    return kind == "xt" and isinstance(body, Mapping) and body.get("type") == "target"


def _verdict(kind: str, body: Any, packet: Packet) -> tuple[str | None, str]:
    if kind in ("accept", "drop", "reject", "return"):
        return kind, ""
    if kind in ("jump", "goto"):
        return kind, str(body["target"])
    if kind == "queue":
        return "accept", ""  # a program decides, which nobody can read here
    if _is_target(kind, body):
        return ("reject", "") if body.get("name") in ("REJECT", "DROP") else (None, "")
    if kind == "vmap":
        return _mapped(body, packet)
    return None, ""  # counts, logs, marks


def _mapped(body: Mapping[str, Any], packet: Packet) -> tuple[str | None, str]:
    data = body.get("data")
    pairs = data.get("set", ()) if isinstance(data, Mapping) else ()
    for key, verdict in pairs:
        if _compare(body["key"], "==", key, packet):
            kind, inner = next(iter(verdict.items()))
            return _verdict(kind, inner, packet)
    return None, ""


def _holds(kind: str, body: Any, packet: Packet) -> bool | None:
    """None: it cannot be told."""
    if kind == "match":
        return _compare(body["left"], body.get("op", "=="), body["right"], packet)
    if kind == "xt" and isinstance(body, Mapping) and body.get("name") == "comment":
        return True
    return None


def _compare(left: Any, op: str, right: Any, packet: Packet) -> bool | None:
    if op not in ("==", "!=", "in"):
        return None
    equal = _equals(left, right, packet)
    return equal if op != "!=" or equal is None else not equal


def _equals(left: Any, right: Any, packet: Packet) -> bool | None:
    options = right.get("set") if isinstance(right, Mapping) and "set" in right else right
    if isinstance(options, list):
        results = [_equals(left, one, packet) for one in options]
        return True if True in results else (None if None in results else False)
    if not isinstance(left, Mapping) or (isinstance(right, str) and right.startswith("@")):
        return None
    kind, body = next(iter(left.items()))
    if kind == "&" and isinstance(body, list):
        return _equals(body[0], right, packet) if body[1] == right else None
    compare = _COMPARE.get(kind)
    return compare(body, right, packet) if compare is not None else None


def _meta(body: Mapping[str, Any], right: Any, packet: Packet) -> bool | None:
    known = {
        "iifname": packet.came_in,
        "iif": packet.came_in,
        "oifname": packet.goes_out,
        "oif": packet.goes_out,
        "nfproto": "ipv4",
        "protocol": "ip",
        "l4proto": "tcp",
    }.get(str(body.get("key")))
    if known is None or not isinstance(right, str):
        return None
    if right.endswith("*"):
        return known.startswith(right[:-1])
    return known == right


def _ct(body: Mapping[str, Any], right: Any, packet: Packet) -> bool | None:
    match body.get("key"):
        case "state":
            return bool(packet.state == right)
        case "direction":
            return bool(packet.direction == right)
        case "status" if right in ("dnat", "snat"):
            return bool(packet.translated == right)
    return None


def _payload(body: Mapping[str, Any], right: Any, packet: Packet) -> bool | None:
    protocol, name = body.get("protocol"), body.get("field")
    if protocol in ("udp", "icmp", "icmpv6", "ip6", "arp", "sctp", "dccp"):
        return False
    if protocol == "ip" and name == "protocol" and isinstance(right, str):
        return right == "tcp"
    if protocol == "ip" and name == packet.guest_is:
        return _is_guest(right, packet.guests)
    return None


def _is_guest(right: Any, guests: ipaddress.IPv4Network) -> bool | None:
    """Whether that holds of every guest, or of none."""
    try:
        if isinstance(right, Mapping):
            prefix = right["prefix"]
            network = ipaddress.IPv4Network((prefix["addr"], prefix["len"]), strict=False)
        else:
            network = ipaddress.IPv4Network(right)
    except (KeyError, ValueError, TypeError):
        return None
    if guests.subnet_of(network):
        return True
    return None if network.overlaps(guests) else False


def _fib(body: Mapping[str, Any], right: Any, packet: Packet) -> bool | None:
    """What is forwarded is for no address of the host's own."""
    about_destination = body.get("result") == "type" and body.get("flags") == ["daddr"]
    return bool(right == "unicast") if about_destination else None


_COMPARE = {"meta": _meta, "ct": _ct, "payload": _payload, "fib": _fib}


def _names_us(body: Any, packet: Packet) -> bool:
    """Whether a match that holds is about our bridge or our guests."""
    if not isinstance(body, Mapping) or body.get("op") == "!=":
        return False
    left, right = body.get("left"), body.get("right")
    if not isinstance(left, Mapping):
        return False
    key = left.get("meta", {}).get("key")
    if key in ("iifname", "iif", "oifname", "oif"):
        named = packet.came_in if key.startswith("i") else packet.goes_out
        return bool(named == packet.bridge and right != "*")
    return bool(left.get("payload", {}).get("field") == packet.guest_is)
