"""By which names the status port may be asked: a browser that was led there by another is refused.

A page of a stranger may have its own name resolve to 127.0.0.1 and then read, as that name, what
a port of this machine says (DNS rebinding). The request's Host has that name, which is none of
ours.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

_HOSTS = Path("/etc/hosts")
_LOCALHOST = frozenset(("localhost", "ip6-localhost"))


def names_of_this_host(configured: Iterable[str] = (), hosts: Path = _HOSTS) -> frozenset[str]:
    """In lower case: localhost, the node's name, long and short, and what the configuration adds.

    Also what /etc/hosts calls the loopback addresses.
    """
    node = os.uname().nodename
    found = {*_LOCALHOST, node, node.partition(".")[0], *_loopback_names(hosts), *configured}
    return frozenset(name.lower() for name in found if name)


def is_ours(host: str | None, names: frozenset[str]) -> bool:
    """`host`: the Host header, with or without a port. Who names none is no browser."""
    if host is None:
        return True
    name, port = _without_port(host.strip())
    if port and not (port.isascii() and port.isdigit()):
        return False
    return _is_address(name) or name.lower().removesuffix(".") in names


def _without_port(host: str) -> tuple[str, str]:
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, port = host.partition(":")
    return name, port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _loopback_names(hosts: Path) -> Iterable[str]:
    try:
        lines = hosts.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if _is_address(address) and ipaddress.ip_address(address).is_loopback:
            yield from names
