"""One container of a config: its image, what it may ask of its guest, what it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from agent.releases.fields import Field
from agent.releases.guest_rules.finding import Finding, odd, refused
from agent.releases.guest_rules.names import (
    CONTAINER,
    CONTAINER_NEWER,
    HEALTHCHECK,
    check_names,
)
from agent.releases.oci.references import is_played

TOOLBOX = "tinfoil-debug-toolbox"  # what a debug boot adds
RESERVED_PORTS = {443: "the guest's own HTTPS", 2222: "the debug toolbox's"}
CAPABILITIES = ("IPC_LOCK", "NET_BIND_SERVICE", "SYS_NICE")
_RESTARTS = ("", "no", "always", "on-failure", "unless-stopped")
_MIN_MEMORY = 6 << 20  # the container engine's own
_UNSUPPORTED = {
    "privileged": "guests run no privileged container: leave it out",
    "cap_drop": "guests drop what they drop themselves: leave it out",
    "security_opt": "guests take no security options: leave it out",
}
_DOMAIN = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?"
_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_NAMED = re.compile(rf"(?:({_DOMAIN})/)?{_PART}(/{_PART})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?")
_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_NOTHING = re.compile(r"sha256:0{64}")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?b)?\s*", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_CREDENTIAL = re.compile(r"(?i)(password|passwd|passphrase|secret|token|api_?key|private_?key)$")


class Machine(NamedTuple):
    """What containers have around them. `newer`: guests of after 0.11, which know more fields."""

    cpus: int
    memory_mib: int
    gpus: int
    newer: bool


def check_container(field: Field, machine: Machine) -> Iterator[Finding]:
    """All that is wrong with it by itself."""
    yield from check_names(field, CONTAINER, CONTAINER_NEWER if machine.newer else None)
    values = field.value if isinstance(field.value, dict) else {}
    for name, why in _UNSUPPORTED.items():
        if name in values:
            yield Finding(f"{field.path}.{name}", why)
    yield from _name(field)
    yield from _image(field)
    yield from _policy(field)
    yield from _gpus(field, machine.gpus)
    yield from _size(field, machine)
    yield from _lifetime(field)
    yield from _ports(field)
    yield from _env(field)


def _name(container: Field) -> Iterator[Finding]:
    name = container.optional("name")
    if name is None or name.value == "":
        yield Finding(f"{container.path}.name", "is missing")
    elif name.value == TOOLBOX:
        yield refused(name, "is reserved for the toolbox of debug boots")


def _image(container: Field) -> Iterator[Finding]:
    image = container.optional("image")
    if image is None or image.value == "":
        yield Finding(f"{container.path}.image", "is missing")
        return
    named, at, digest = str(image.value).partition("@")
    if not at:
        yield refused(image, "must be pinned by its digest: NAME@sha256:<64 hex digits>")
    elif not _DIGEST.fullmatch(digest):
        yield refused(image, "has no digest behind its @: sha256: and 64 hex digits, small")
    elif _NOTHING.fullmatch(digest) and not is_played(named):
        yield refused(image, "has a digest that only holds a place: put the image's own there")
    if not _NAMED.fullmatch(named):
        yield refused(image, "is no name of an image: REGISTRY/NAME[:TAG], small letters")


def _policy(container: Field) -> Iterator[Finding]:
    if (pid := container.optional("pid")) and pid.value:
        yield refused(pid, "guests share no process namespace: leave it out")
    if (devices := container.optional("devices")) and devices.value:
        yield refused(devices, "guests hand out no devices: leave it out")
    if (ipc := container.optional("ipc")) and ipc.value not in ("", "private", "none"):
        yield refused(ipc, f"is {_said(ipc)}; guests take private or none")
    for capability in _items(container, "cap_add"):
        if capability.value not in CAPABILITIES:
            yield refused(capability, f"must be one of {', '.join(CAPABILITIES)}")
    for volume in _items(container, "volumes"):
        source, colon, _ = str(volume.value).partition(":")
        if not colon or not _VOLUME.fullmatch(source):
            yield refused(volume, "must be NAME:PATH; no path of the guest can be mounted")


def _gpus(container: Field, available: int) -> Iterator[Finding]:
    runtime, gpus = container.optional("runtime"), container.optional("gpus")
    nvidia = runtime is not None and runtime.value == "nvidia"
    if runtime is not None and runtime.value not in ("", "nvidia"):
        yield refused(runtime, "must be nvidia, or absent")
    if gpus is None:
        if nvidia:
            yield Finding(f"{container.path}.gpus", "is missing: runtime nvidia needs it")
        return
    if available < 1:
        yield refused(gpus, "wants GPUs, but the config has none (gpus)")
    elif not nvidia:
        yield refused(gpus, "needs runtime: nvidia beside it")
    elif wrong := _selection(gpus.value, available):
        yield refused(gpus, wrong)


def _selection(value: object, available: int) -> str:
    """What is wrong with `all`, a count, or a list such as `0,1`; empty: nothing."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "" if 1 <= value <= available else f"must be 1 to {available}"
    if not isinstance(value, str):
        return "must be all, a count, or numbers such as 0,1"
    if value == "all":
        return ""
    numbers = value.split(",")
    right = {str(number) for number in range(available)}
    if len(set(numbers)) < len(numbers) or not right.issuperset(numbers):
        return f"must be all, a count, or numbers from 0 to {available - 1}, each once"
    return ""


def _size(container: Field, machine: Machine) -> Iterator[Finding]:
    cpus = container.optional("cpus")
    share = cpus.value if cpus else 0
    if isinstance(share, int | float) and share and not 0.01 <= share <= machine.cpus:
        path = f"{container.path}.cpus"
        yield Finding(path, f"must be 0.01 to {machine.cpus}: the guest has no more")
    for name in ("memory", "shm_size"):
        field = container.optional(name)
        if field is None or field.value == "":
            continue
        size = bytes_of(str(field.value))
        if size is None:
            yield refused(field, "must be a size such as 512m or 2g")
        elif name == "memory" and 0 < size < _MIN_MEMORY:
            yield refused(field, "must be 6m at least; a number alone is bytes")
        elif size > machine.memory_mib << 20:
            yield odd(field, f"is more than the guest has: {machine.memory_mib} MiB (memory)")


def bytes_of(text: str) -> int | None:
    """Of `512m`, `1.5g`, `2GiB`, `1024`, as the container engine takes them; None of others."""
    match = _SIZE.fullmatch(text)
    return int(float(match[1]) * (1 << _UNITS[match[2].lower()])) if match else None


def _lifetime(container: Field) -> Iterator[Finding]:
    restart = container.optional("restart")
    # `no` without quotes is a text to the guest, and false to YAML 1.1
    if restart is not None and restart.value is not False and restart.value not in _RESTARTS:
        yield refused(restart, f"must be one of {', '.join(_RESTARTS[1:])}")
    check = container.optional("healthcheck")
    if check is None or not isinstance(check.value, dict):
        return
    yield from check_names(check, HEALTHCHECK)
    words = check.optional("test")
    first = words.value[0] if words and isinstance(words.value, list) and words.value else None
    if first not in ("CMD", "CMD-SHELL", "NONE"):
        path = f"{check.path}.test"
        yield Finding(path, "must begin with CMD, CMD-SHELL or NONE", sure=False)


def _ports(container: Field) -> Iterator[Finding]:
    for port in _items(container, "ports"):
        guest = str(port.value).removesuffix("/tcp").partition(":")[0]
        whose = RESERVED_PORTS.get(int(guest)) if guest.isdecimal() else None
        if whose:
            yield refused(port, f"port {guest} is {whose}")


def _env(container: Field) -> Iterator[Finding]:
    fixed: set[str] = set()
    for entry in _items(container, "env"):
        name, value = str(entry.value), None
        if isinstance(entry.value, dict):
            if len(entry.value) != 1:
                yield refused(entry, "must be a name, or a map of one name to its value")
                continue
            [(raw, value)] = entry.value.items()
            name = str(raw)
            if value is None or isinstance(value, dict | list):
                yield refused(entry, f"{name} must have a plain value; '' for none")
            elif _CREDENTIAL.search(name) and value not in ("", False):
                yield odd(entry, f"{name} is public here, like all of a config: make it a secret")
        if not _ENV_NAME.fullmatch(name):
            yield refused(entry, "must be named by letters, digits and '_', no digit first")
        if name in fixed:
            yield odd(entry, f"{name} is there twice: the last one is what counts")
        fixed.add(name)
    for secret in _items(container, "secrets"):
        if not _ENV_NAME.fullmatch(str(secret.value)):
            yield refused(secret, "must be named by letters, digits and '_', no digit first")
        elif secret.value in fixed:
            yield odd(secret, "is in env, too: one of the two is lost")


def _items(parent: Field, name: str) -> list[Field]:
    """Of a list; none of what is no list, which is told by its kind."""
    field = parent.optional(name)
    return field.items(1 << 20) if field and isinstance(field.value, list) else []


def _said(field: Field) -> str:
    return str(field.value)[:40]
