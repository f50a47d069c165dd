"""The networks of a config, and who is in them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from agent.releases.fields import Field
from agent.releases.guest_rules.finding import Finding, refused
from agent.releases.guest_rules.names import NETWORK, check_names

SHIM_NETWORK = "shim-net"  # between the shim and its upstream container
_LONGEST = 15  # of a link's name
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_EGRESS = ("closed", "allowlist", "open")
_HOST = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_networks(root: Field) -> Iterator[Finding]:
    """Each by itself."""
    networks = root.optional("networks")
    if networks is None or not isinstance(networks.value, dict):
        return
    for name in networks.value:
        field = Field(root.document, f"networks.{name}", networks.value[name])
        yield from _named(field, str(name))
        if field.value is None:
            continue
        if not isinstance(field.value, dict):
            yield refused(field, "must be a map, or nothing")
            continue
        yield from check_names(field, NETWORK)
        yield from _egress(field)


def check_membership(root: Field, container: Field) -> Iterator[Finding]:
    """The networks that one container names."""
    joined = container.optional("networks")
    if joined is None or not isinstance(joined.value, list):
        return
    declared = root.optional("networks")
    known = declared.value if declared and isinstance(declared.value, dict) else {}
    outward = []
    for n, entry in enumerate(joined.items(1 << 20)):
        name = str(entry.value)
        if name in joined.value[:n]:
            yield refused(entry, f"{name} is there twice")
        elif name == SHIM_NETWORK:
            yield refused(entry, f"{name} is the shim's own")
        elif name not in known:
            yield refused(entry, f"{name} is no network of this config (networks)")
        elif egress_of(known[name]) != "closed":
            outward.append(name)
    if len(outward) > 1:
        told = f"{' and '.join(outward)} reach out: a container may be in one such network only"
        yield refused(joined, told)


def egress_of(network: object) -> str:
    """`closed` unless it says otherwise."""
    said = network.get("egress") if isinstance(network, Mapping) else None
    return str(said) if said else "closed"


def _named(field: Field, name: str) -> Iterator[Finding]:
    if name == SHIM_NETWORK:
        yield refused(field, "is the shim's own: give it another name")
    elif len(name) > _LONGEST or not _NAME.fullmatch(name):
        yield refused(field, f"must be a-z, 0-9 and '-', at most {_LONGEST} characters")


def _egress(field: Field) -> Iterator[Finding]:
    egress = egress_of(field.value)
    if egress not in _EGRESS:
        yield Finding(f"{field.path}.egress", f"must be one of {', '.join(_EGRESS)}")
    allow = field.optional("allow")
    if allow is None or not isinstance(allow.value, list):
        return
    if allow.value and egress != "allowlist":
        yield refused(allow, "is only read with egress: allowlist")
    for host in allow.items(1 << 20):
        if not _is_host_name(str(host.value)):
            yield refused(host, "must be a host's name: no address and no '*'")


def _is_host_name(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and _HOST.fullmatch(text.lower()) is not None
    return False
