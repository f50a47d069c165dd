"""A whole config, held against what its guest takes."""

from __future__ import annotations

from collections.abc import Iterator

from agent.releases.boot_options import cvm_source
from agent.releases.fields import Field, ReleaseFieldError
from agent.releases.guest_rules.containers import Machine, check_container
from agent.releases.guest_rules.finding import Finding, odd, refused
from agent.releases.guest_rules.names import (
    CVM_NETWORK,
    MODEL,
    MODEL_NEWER,
    SHIM,
    TOP,
    TOP_NEWER,
    check_names,
)
from agent.releases.guest_rules.networks import check_membership, check_networks
from agent.releases.layout import parse_version
from agent.releases.naming import CONFIG
from agent.releases.workload import MAX_CONFIG_BYTES, parse_workload
from agent.strict_yaml import load_strict_yaml

_NEWER = (0, 12, 0)  # from here on there are fields that are not all known
_LEAST_MEMORY_MIB = 128
_MODES = {
    "tls-mode": ("self-signed", "acme", "cert-proxy"),
    "tls-env": ("production", "staging"),
    "tls-challenge": ("tls", "dns", "http"),
}
_TOLD = 8


def check_config(config: bytes) -> tuple[Finding, ...]:
    """All that its guest refuses of it, and what is odd, in the config's order.

    What a host needs of it must be right: raises ReleaseFieldError. Images of another publisher
    (`cvm-source`) have rules of their own, so that nothing is said of theirs.
    """
    workload = parse_workload(config)
    root = Field(CONFIG, "", load_strict_yaml(config, max_bytes=MAX_CONFIG_BYTES))
    if cvm_source(root) is not None:
        return ()
    machine = Machine(
        cpus=workload.cpus,
        memory_mib=workload.memory_mib,
        gpus=workload.gpus,
        newer=parse_version(workload.cvm_version) >= _NEWER,
    )
    return tuple(_findings(root, machine))


def refusals(config: bytes) -> tuple[str, ...]:
    """What its guest surely refuses, as sentences of warning; at most nine."""
    try:
        found = [one for one in check_config(config) if one.sure]
    except ReleaseFieldError:  # somebody else tells that
        return ()
    told = [f"the guest will refuse its {CONFIG}: {one}" for one in found[:_TOLD]]
    if len(found) > _TOLD:
        told.append(f"the guest will refuse {len(found) - _TOLD} more places of its {CONFIG}")
    return tuple(told)


def _findings(root: Field, machine: Machine) -> Iterator[Finding]:
    yield from check_names(root, TOP, TOP_NEWER if machine.newer else None)
    if machine.memory_mib < _LEAST_MEMORY_MIB:
        told = f"is in MiB: no guest boots with {machine.memory_mib} MiB"
        yield Finding("memory", told)
    yield from _models(root, machine)
    if ports := root.optional("cvm-network"):
        yield from check_names(ports, CVM_NETWORK)
    yield from check_networks(root)
    containers = _containers(root)
    for container in containers:
        yield from check_container(container, machine)
        yield from check_membership(root, container)
    if machine.gpus and not any(one.optional("gpus") for one in containers):
        yield Finding("gpus", "no container asks for one (runtime: nvidia, gpus)", sure=False)
    yield from _shim(root, [str(one.mapping().get("name")) for one in containers])


def _containers(root: Field) -> list[Field]:
    field = root.optional("containers")
    found = field.items(1 << 20) if field and isinstance(field.value, list) else []
    return [one for one in found if isinstance(one.value, dict)]


def _models(root: Field, machine: Machine) -> Iterator[Finding]:
    """A key that opens a model is no container's business."""
    field = root.optional("models")
    models = field.items(1 << 20) if field and isinstance(field.value, list) else []
    keys = {}
    for model in models:
        yield from check_names(model, MODEL, MODEL_NEWER if machine.newer else None)
        key = model.optional("key-secret") if isinstance(model.value, dict) else None
        if key is not None:
            keys[key.value] = key.path
    for container in _containers(root):
        secrets = container.optional("secrets")
        listed = secrets.items(1 << 20) if secrets and isinstance(secrets.value, list) else []
        for secret in listed:
            if isinstance(secret.value, str) and secret.value in keys:
                told = f"opens a model ({keys[secret.value]}): no container may have it"
                yield refused(secret, told) if machine.newer else odd(secret, told)


def _shim(root: Field, names: list[str]) -> Iterator[Finding]:
    shim = root.optional("shim")
    port = shim.optional("upstream-port") if shim and isinstance(shim.value, dict) else None
    if port is None or port.value == 0:
        yield Finding("shim.upstream-port", "is missing: where the workload listens")
    elif isinstance(port.value, int) and not 1 <= port.value <= 65535:
        yield refused(port, "must be 1 to 65535")
    if shim is None or not isinstance(shim.value, dict):
        return
    yield from check_names(shim, SHIM, strict=False)
    for name, allowed in _MODES.items():
        mode = shim.optional(name)
        if mode is not None and mode.value not in allowed:
            yield refused(mode, f"must be one of {', '.join(allowed)}")
    wildcard, challenge = shim.optional("tls-wildcard"), shim.optional("tls-challenge")
    if wildcard and wildcard.value is True and challenge and challenge.value in ("tls", "http"):
        yield refused(wildcard, "needs tls-challenge: dns")
    upstream = shim.optional("upstream-container")
    if upstream is not None and upstream.value and upstream.value not in names:
        yield refused(upstream, f"there is no container {str(upstream.value)[:64]}")
    if not names:
        yield Finding("containers", "there is none: nothing answers behind the shim", sure=False)
