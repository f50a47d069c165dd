"""`tinfoil-config.yml` as far as the host needs it: the shape, and what must be supplied.

The guest validates the rest. A field that the host does not need is not even looked at, so that a
config for a newer image is not refused here; the few that it needs are checked to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from agent.model.ids import parse_variable_name
from agent.model.resources import GUEST_HTTPS_PORT
from agent.model.shim import ShimRules
from agent.releases.boot_options import (
    cvm_source,
    dummy_attestation,
    fetches_secrets,
    tls_challenge,
)
from agent.releases.boot_waits import healthy_within_s, start_period_s, tls_mode
from agent.releases.fields import Field, ReleaseFieldError
from agent.releases.layout import VERSION, VERSION_RULE
from agent.releases.naming import CONFIG
from agent.releases.shim import read_shim
from agent.strict_yaml import StrictYamlError, load_strict_yaml

MAX_CONFIG_BYTES = 1 << 20
MAX_DATA_DISKS = 24  # 00:07.0 to 00:1e.0
MAX_GPUS = 8
MAX_CPUS = 1024
MAX_MEMORY_MIB = 64 << 20

_MAX_CONTAINERS = 64
_MAX_PORTS = 64
_MAX_LIST = 1024
_MAX_IMAGE = 512
_PACK_FIELDS = ("mpk", "mwp", "emwp")
_PACK = re.compile(r"([0-9a-f]{64})_([1-9][0-9]{0,17})_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VOLUME = re.compile(r"[a-z][a-z0-9-]{0,62}")


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The needs of a workload. `models` are its packs' root hashes, in the config's order.

    `cvm_source`: whose image it is, None for the public one's. For the rest see `boot_options`.
    """

    cvm_version: str
    cvm_source: str | None
    cpus: int
    memory_mib: int
    gpus: int
    models: tuple[str, ...]
    volumes: tuple[str, ...]
    inbound_ports: tuple[int, ...]
    container_names: tuple[str, ...]
    container_images: tuple[str, ...]
    env_names: tuple[str, ...]
    secret_names: tuple[str, ...]
    fetches_secrets: bool
    tls_challenge: str
    dummy_attestation: bool
    start_period_s: float
    shim: ShimRules
    boot_wait_s: float
    tls_mode: str


def parse_workload(data: bytes) -> Workload:
    """Read a config; ReleaseFieldError names the first field that is wrong."""
    try:
        root = Field(CONFIG, "", load_strict_yaml(data, max_bytes=MAX_CONFIG_BYTES))
    except StrictYamlError as error:
        raise ReleaseFieldError(CONFIG, "", str(error)) from error
    version = root.member("cvm-version").text(VERSION, VERSION_RULE)
    gpus = root.optional("gpus")
    containers = _list(root, "containers", _MAX_CONTAINERS)
    models = _list(root, "models", MAX_DATA_DISKS)
    volumes = _list(root, "volumes", MAX_DATA_DISKS)
    if len(models) + len(volumes) > MAX_DATA_DISKS:
        raise root.error(f"models and volumes together must be at most {MAX_DATA_DISKS}")
    return Workload(
        cvm_version=version.partition("@")[0],
        cvm_source=cvm_source(root),
        cpus=root.member("cpus").integer(1, MAX_CPUS),
        memory_mib=root.member("memory").integer(1, MAX_MEMORY_MIB),
        gpus=gpus.integer(0, MAX_GPUS) if gpus else 0,
        models=tuple(_pack(model) for model in models),
        volumes=_names((v.member("name") for v in volumes), _VOLUME, "a-z, 0-9 and '-'"),
        inbound_ports=_inbound_ports(root),
        container_names=_names(
            (c.member("name") for c in containers), _CONTAINER, "letters, digits, '_', '.', '-'"
        ),
        container_images=tuple(_image(c) for c in containers),
        env_names=_once(name for c in containers for name in _bare_env(c)),
        shim=read_shim(root),
        start_period_s=max(map(start_period_s, containers), default=0.0),
        boot_wait_s=max(map(healthy_within_s, containers), default=0.0),
        tls_mode=tls_mode(root),
        secret_names=_once(_secrets(containers, (*models, *volumes))),
        fetches_secrets=fetches_secrets(root),
        tls_challenge=tls_challenge(root),
        dummy_attestation=dummy_attestation(root),
    )


def _image(container: Field) -> str:
    """As it is written; what is no image is the guest's to judge."""
    image = container.optional("image")
    return image.value[:_MAX_IMAGE] if image and isinstance(image.value, str) else ""


def _list(parent: Field, name: str, most: int) -> list[Field]:
    found = parent.optional(name)
    return found.items(most) if found else []


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _names(fields: Iterable[Field], pattern: re.Pattern[str], letters: str) -> tuple[str, ...]:
    names: list[str] = []
    for field in fields:
        name = field.text(pattern, f"must be {letters}, beginning with a letter or digit")
        if name in names:
            raise field.error("is there twice")
        names.append(name)
    return tuple(names)


def _pack(model: Field) -> str:
    """A pack is named `<root hash>_<offset of its hash tree>_<uuid>`; its disk by the first."""
    for kind in _PACK_FIELDS:
        field = model.optional(kind)
        if field is not None:
            text = field.text(_PACK, "must be ROOTHASH_OFFSET_UUID")
            return text.partition("_")[0]
    raise model.error(f"must name its pack: one of {', '.join(_PACK_FIELDS)}")


def _inbound_ports(root: Field) -> tuple[int, ...]:
    network = root.optional("cvm-network")
    fields = _list(network, "inbound-ports", _MAX_PORTS) if network else []
    ports: list[int] = []
    for field in fields:
        port = field.integer(1, 65535)
        if port == GUEST_HTTPS_PORT:
            raise field.error(f"{GUEST_HTTPS_PORT} is the guest's own HTTPS")
        if port in ports:
            raise field.error("is there twice")
        ports.append(port)
    return tuple(ports)


def _bare_env(container: Field) -> Iterable[str]:
    """Names without a value; one-key maps carry their own."""
    for entry in _list(container, "env", _MAX_LIST):
        if isinstance(entry.value, str):
            yield entry.parsed(parse_variable_name)
            continue
        if not isinstance(entry.value, dict) or len(entry.value) != 1:
            raise entry.error("must be a name, or a map of one name to its value")
        [(name, value)] = entry.value.items()
        if not isinstance(name, str) or isinstance(value, dict | list):
            raise entry.error("must be a name, or a map of one name to its value")


def _secrets(containers: list[Field], disks: Iterable[Field]) -> Iterable[str]:
    """Those of containers, and those that open an encrypted model pack or volume."""
    for container in containers:
        for entry in _list(container, "secrets", _MAX_LIST):
            yield entry.parsed(parse_variable_name)
        registry = container.optional("registry")
        password = registry.optional("password_secret") if registry else None
        if password is not None:
            yield password.parsed(parse_variable_name)
    for disk in disks:
        key = disk.optional("key-secret")
        if key is not None:
            yield key.parsed(parse_variable_name)
