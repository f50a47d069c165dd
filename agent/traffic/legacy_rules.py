"""The rules of iptables-legacy, as the kernel gives them, in the form that nft lists. Pure.

Source of the layout: <linux/netfilter_ipv4/ip_tables.h>, <linux/netfilter/x_tables.h> on a 64-bit
machine.
"""

from __future__ import annotations

import ipaddress
import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

TABLE = "filter of iptables-legacy"
_FAMILY = "ip"
_FORWARD = 2  # NF_INET_FORWARD
_IN, _OUT, _SOURCE, _DESTINATION, _PROTOCOL = 0x01, 0x02, 0x08, 0x10, 0x40  # IPT_INV_…
_IP = struct.Struct("=4s4s4s4s16s16s16s16sHBB")
_OFFSETS = struct.Struct("=HH")
_OFFSETS_AT, _ENTRY_BYTES = 88, 112
_HEAD = struct.Struct("=H29sB")  # of a match or target
_VERDICTS = {-1: "drop", -2: "accept", -4: "queue", -5: "return"}
_TCP = 6


class Info(NamedTuple):
    """struct ipt_getinfo, without the name."""

    hook_entry: tuple[int, ...]
    underflow: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class _Entry:
    at: int
    matches: tuple[Mapping[str, Any], ...]
    target: str
    verdict: int
    error: str  # the name of the chain that begins behind it


def items(info: Info, entries: bytes) -> list[Mapping[str, Any]]:
    """Chains and rules, as `nft -j list table` has them; nothing for what is not understood."""
    try:
        parsed = list(_entries(entries))
    except (struct.error, ValueError):
        return []
    names = {info.hook_entry[_FORWARD]: "FORWARD"}
    for header, first in itertools.pairwise(parsed):
        if header.error:
            names[first.at] = header.error
    found: list[Mapping[str, Any]] = []
    chain: str | None = None
    for entry in parsed:
        if entry.error or entry.at in info.hook_entry:
            chain = None
        if entry.at in names:
            chain = names[entry.at]
            found.append({"chain": _chain(chain, info, parsed)})
        if chain is not None and not (chain == "FORWARD" and entry.at == info.underflow[_FORWARD]):
            found.append({"rule": _rule(chain, entry, names)})
    return found


def without_counters(entries: bytes) -> bytes:
    """What stays the same as long as nobody changes a rule."""
    parts, at = [], 0
    while at + _ENTRY_BYTES <= len(entries):
        _, following = _OFFSETS.unpack_from(entries, at + _OFFSETS_AT)
        parts.append(entries[at : at + _OFFSETS_AT + 4])
        parts.append(entries[at + _ENTRY_BYTES : at + following])
        if following < _ENTRY_BYTES:
            break
        at += following
    return b"".join(parts)


def _chain(name: str, info: Info, parsed: list[_Entry]) -> Mapping[str, Any]:
    chain: dict[str, Any] = {"family": _FAMILY, "table": TABLE, "name": name}
    if name == "FORWARD":
        policy = next(one for one in parsed if one.at == info.underflow[_FORWARD])
        chain |= {"hook": "forward", "policy": _VERDICTS.get(policy.verdict, "accept")}
    return chain


def _rule(chain: str, entry: _Entry, names: Mapping[int, str]) -> Mapping[str, Any]:
    statements = [*entry.matches, *_decision(entry, names)]
    return {"family": _FAMILY, "table": TABLE, "chain": chain, "expr": statements}


def _decision(entry: _Entry, names: Mapping[int, str]) -> Iterator[Mapping[str, Any]]:
    if entry.target:
        yield {"xt": {"type": "target", "name": entry.target}}
    elif entry.verdict < 0:
        yield {_VERDICTS.get(entry.verdict, "continue"): None}
    elif entry.verdict in names:
        yield {"jump": {"target": names[entry.verdict]}}


def _entries(data: bytes) -> Iterator[_Entry]:
    at = 0
    while at + _ENTRY_BYTES <= len(data):
        target_at, following = _OFFSETS.unpack_from(data, at + _OFFSETS_AT)
        size, name, _ = _HEAD.unpack_from(data, at + target_at)
        target = _text(name)
        body = data[at + target_at + _HEAD.size : at + target_at + size]
        verdict = struct.unpack_from("=i", body)[0] if not target else 0
        matches = (*_addresses(data, at), *_extensions(data, at + _ENTRY_BYTES, at + target_at))
        error = _text(body) if target == "ERROR" else ""
        yield _Entry(at, matches, target, verdict, error)
        if following < _ENTRY_BYTES:
            raise ValueError("an entry ends before it begins")
        at += following


def _addresses(data: bytes, at: int) -> Iterator[Mapping[str, Any]]:
    source, destination, source_mask, destination_mask, *rest = _IP.unpack_from(data, at)
    came_in, goes_out, in_mask, out_mask, protocol, _, inverted = rest
    for name, mask, key, bit in (
        (came_in, in_mask, "iifname", _IN),
        (goes_out, out_mask, "oifname", _OUT),
    ):
        if any(mask):
            whole = _text(name)
            if mask.count(0xFF) <= len(whole):  # its end is not compared
                whole = f"{whole.removesuffix('+')}*"
            yield _match({"meta": {"key": key}}, whole, inverted & bit)
    for address, mask, key, bit in (
        (source, source_mask, "saddr", _SOURCE),
        (destination, destination_mask, "daddr", _DESTINATION),
    ):
        if any(mask):
            length = ipaddress.IPv4Network((0, str(ipaddress.IPv4Address(mask)))).prefixlen
            prefix = {"prefix": {"addr": str(ipaddress.IPv4Address(address)), "len": length}}
            yield _match({"payload": {"protocol": "ip", "field": key}}, prefix, inverted & bit)
    if protocol:
        word = "tcp" if protocol == _TCP else f"number {protocol}"
        left = {"payload": {"protocol": "ip", "field": "protocol"}}
        yield _match(left, word, inverted & _PROTOCOL)


def _match(left: Mapping[str, Any], right: Any, inverted: int) -> Mapping[str, Any]:
    return {"match": {"op": "!=" if inverted else "==", "left": left, "right": right}}


def _extensions(data: bytes, at: int, end: int) -> Iterator[Mapping[str, Any]]:
    while at + _HEAD.size <= end:
        size, name, _ = _HEAD.unpack_from(data, at)
        yield {"xt": {"type": "match", "name": _text(name)}}
        if size < _HEAD.size:
            return
        at += size


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="replace")
