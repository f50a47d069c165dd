"""Where this host's SSH server listens, or will once it is started: read in sshd_config(5).

What cannot be read counts as the server's defaults: a port that is refused in vain costs a word in
the configuration, one that is given away costs the way into the host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from agent.model.resources import Listen, parse_port

_CONFIG = Path("/etc/ssh/sshd_config")
_STANDARD_PORT = 22
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 16  # as sshd itself
_ANY = ("0.0.0.0", "::")  # noqa: S104 - named, not bound


def read_ssh_listeners(config: Path = _CONFIG) -> tuple[Listen, ...]:
    """All of them, sorted; without a configuration port 22 of every address."""
    ports: list[int] = []
    places: list[str] = []
    for keyword, value in _settings(config, config.parent, _MAX_DEPTH):
        if keyword == "port":
            ports += _port(value)
        elif keyword == "listenaddress":
            places.append(value.split()[0] if value else "")
    standard = ports or [_STANDARD_PORT]
    found = {one for place in places for one in _listens(place, standard)}
    return tuple(sorted(found or {Listen(address=a, port=p) for a in _ANY for p in standard}))


def _settings(path: Path, directory: Path, depth: int) -> Iterator[tuple[str, str]]:
    """Keyword in lower case, and value; what holds under a condition says no port or address.

    `directory`: which patterns are relative to, in files that were included, too.
    """
    try:
        lines = path.read_bytes()[:_MAX_BYTES].decode(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        keyword, _, value = line.strip().replace("=", " ", 1).replace("\t", " ").partition(" ")
        keyword, value = keyword.lower(), value.strip().replace('"', "")
        if keyword == "match":
            return
        if keyword == "include" and depth:
            for pattern in value.split():
                for included in _included(pattern, directory):
                    yield from _settings(included, directory, depth - 1)
        elif keyword and not keyword.startswith("#"):
            yield keyword, value


def _included(pattern: str, directory: Path) -> list[Path]:
    absolute = directory / pattern
    try:
        return sorted(Path("/").glob(str(absolute).lstrip("/")))
    except (OSError, ValueError):
        return []


def _port(text: str) -> list[int]:
    try:
        return [parse_port(text.partition(" ")[0])]
    except ValueError:
        return []


def _listens(place: str, ports: list[int]) -> Iterator[Listen]:
    """Of `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; a host's name may be any address."""
    host, own = place, ports
    if place.startswith("["):
        host, _, rest = place[1:].partition("]")
        own = _port(rest.lstrip(":")) or ports
    elif place.count(":") == 1:
        host, _, rest = place.partition(":")
        own = _port(rest) or ports
    try:
        addresses: tuple[str, ...] = (str(ipaddress.ip_address(host.partition("%")[0])),)
    except ValueError:
        addresses = _ANY
    yield from (Listen(address=address, port=port) for address in addresses for port in own)
