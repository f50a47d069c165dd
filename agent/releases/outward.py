"""Which names a workload's guest must reach while it boots and serves, as its config says. Pure.

What is not understood is passed over: the guest judges its config, here it is only looked ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agent.releases.workload import MAX_CONFIG_BYTES
from agent.strict_yaml import StrictYamlError, load_strict_yaml

_HTTPS, _HTTP = 443, 80
_DEFAULT_REGISTRY = "registry-1.docker.io"  # of images whose reference names none
_KEEPERS = ("vault-url", "kbs-url", "keyserver-url")
_MOST = 64


class OutwardName(NamedTuple):
    """A host that the guest opens connections to, and the field that says so."""

    field: str
    host: str
    port: int


def outward_names(config: bytes) -> tuple[OutwardName, ...]:
    """Each host and port once, under the first field that names it; at most 64."""
    try:
        root = load_strict_yaml(config, max_bytes=MAX_CONFIG_BYTES)
    except StrictYamlError:
        return ()
    found: dict[tuple[str, int], OutwardName] = {}
    for one in _names(root) if isinstance(root, dict) else ():
        found.setdefault((one.host, one.port), one)
    return tuple(found.values())[:_MOST]


def _names(root: dict[Any, Any]) -> Iterator[OutwardName]:
    containers = root.get("containers")
    for number, container in enumerate(containers if isinstance(containers, list) else ()):
        image = container.get("image") if isinstance(container, dict) else None
        if isinstance(image, str):
            yield from _authority(f"containers[{number}].image", _registry_of(image), _HTTPS)
    for field in _KEEPERS:
        yield from _url(field, root.get(field))
    shim = root.get("shim")
    if isinstance(shim, dict):
        yield from _url("shim.control-plane", shim.get("control-plane"))


def _registry_of(image: str) -> str:
    """As references are read: a first part with a dot or a port, or localhost, is a host."""
    first, slash, _ = image.partition("/")
    is_host = bool(slash) and (first == "localhost" or "." in first or ":" in first)
    return first if is_host and first != "docker.io" else _DEFAULT_REGISTRY


def _url(field: str, value: object) -> Iterator[OutwardName]:
    """A host alone, as the public image takes it too, means https."""
    if not isinstance(value, str) or not value:
        return
    scheme, separator, rest = value.partition("://")
    yield from _authority(
        field, rest if separator else value, _HTTP if scheme == "http" else _HTTPS
    )


def _is_own(host: str) -> bool:
    """What the guest finds in itself: images that were built and pushed nowhere are called
    `localhost/NAME`, and are with it already.
    """
    return host == "localhost" or host.endswith(".localhost") or host.startswith("127.")


def _authority(field: str, text: str, port: int) -> Iterator[OutwardName]:
    try:
        parts = urlsplit(f"//{text}")
        host, said = parts.hostname, parts.port
    except ValueError:
        return
    if host and not _is_own(host):
        yield OutwardName(field, host, said or port)
