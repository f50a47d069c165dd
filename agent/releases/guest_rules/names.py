"""The fields that guests know, and which kind of value each has."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from enum import Enum

from agent.releases.fields import Field
from agent.releases.guest_rules.finding import Finding, odd, refused

_NEARLY = 0.75  # of difflib's ratio: one letter of four may differ


class Kind(Enum):
    """What a value must be; the value is how that is said. Nothing (null) is any of them."""

    ANY = ""
    TEXT = "text"
    TEXTS = "a list of texts"
    WHOLE = "a whole number"
    NUMBER = "a number"
    SWITCH = "true or false"
    MAP = "a map"
    TEXT_MAP = "a map of texts"
    LIST = "a list"
    MAPS = "a list of maps"


_SCALARS = (str, int, float, bool)
Known = Mapping[str, Kind]

TOP: Known = {
    "cvm-version": Kind.TEXT,
    "cpus": Kind.WHOLE,
    "memory": Kind.WHOLE,
    "gpus": Kind.WHOLE,
    "models": Kind.MAPS,
    "volumes": Kind.MAPS,
    "networks": Kind.MAP,
    "cvm-network": Kind.MAP,
    "containers": Kind.MAPS,
    "shim": Kind.MAP,
    "vault-url": Kind.TEXT,
}
TOP_NEWER: Known = {
    "cvm-source": Kind.ANY,
    "keyserver-url": Kind.TEXT,
    "kbs-url": Kind.TEXT,
    "attested-keys": Kind.ANY,
}
MODEL: Known = dict.fromkeys(("name", "repo", "mpk", "mwp", "emwp", "key-secret"), Kind.TEXT)
MODEL_NEWER: Known = {"schema": Kind.ANY}
CVM_NETWORK: Known = {"inbound-ports": Kind.LIST}
NETWORK: Known = {"egress": Kind.TEXT, "allow": Kind.TEXTS}
CONTAINER: Known = {
    "name": Kind.TEXT,
    "image": Kind.TEXT,
    "command": Kind.TEXTS,
    "entrypoint": Kind.TEXTS,
    "working_dir": Kind.TEXT,
    "user": Kind.TEXT,
    "env": Kind.LIST,
    "secrets": Kind.TEXTS,
    "volumes": Kind.TEXTS,
    "devices": Kind.TEXTS,
    "cap_add": Kind.TEXTS,
    "runtime": Kind.TEXT,
    "networks": Kind.TEXTS,
    "ipc": Kind.TEXT,
    "pid": Kind.TEXT,
    "gpus": Kind.ANY,
    "shm_size": Kind.TEXT,
    "memory": Kind.TEXT,
    "cpus": Kind.NUMBER,
    "tmpfs": Kind.TEXT_MAP,
    "read_only": Kind.SWITCH,
    "pids_limit": Kind.WHOLE,
    "restart": Kind.TEXT,
    "stop_signal": Kind.TEXT,
    "stop_timeout": Kind.WHOLE,
    "healthcheck": Kind.MAP,
    # known by name, so that their refusal says why
    "privileged": Kind.ANY,
    "cap_drop": Kind.ANY,
    "security_opt": Kind.ANY,
}
CONTAINER_NEWER: Known = {
    "ports": Kind.LIST,
    "keys": Kind.ANY,
    "attestation": Kind.ANY,
    "cvm_admin": Kind.ANY,
    "registry": Kind.MAP,
}
HEALTHCHECK: Known = {
    "test": Kind.TEXTS,
    "interval": Kind.TEXT,
    "timeout": Kind.TEXT,
    "retries": Kind.WHOLE,
    "start_period": Kind.TEXT,
}
SHIM: Known = {
    "upstream-port": Kind.WHOLE,
    "upstream-container": Kind.TEXT,
    "paths": Kind.TEXTS,
    "origins": Kind.TEXTS,
    "tls-mode": Kind.TEXT,
    "tls-env": Kind.TEXT,
    "tls-challenge": Kind.TEXT,
    "tls-wildcard": Kind.SWITCH,
    "tls-own-san-domain": Kind.SWITCH,
    "control-plane": Kind.TEXT,
    "atc": Kind.TEXT,
    "authenticated": Kind.SWITCH,
    "authenticated-endpoints": Kind.TEXTS,
    "rate-limit": Kind.NUMBER,
    "rate-burst": Kind.WHOLE,
    "email": Kind.TEXT,
    "publish-attestation": Kind.SWITCH,
    "dummy-attestation": Kind.SWITCH,
    "expected-gpus": Kind.WHOLE,
    "listen-port": Kind.WHOLE,  # of images of before; it is passed over
}
_GONE = {
    "shim-version": "images from 0.11 on carry their shim with them: leave it out",
}


def check_names(
    field: Field, known: Known, newer: Known | None = None, *, strict: bool = True
) -> Iterator[Finding]:
    """Names that no guest knows, with the nearest that one does; and values of another kind.

    `newer`: what else newer images know; None: this is one of those whose names are all known.
    `strict`: the guest refuses what it does not know, and does not pass over it.
    """
    if not isinstance(field.value, dict):
        return  # told where the kind of it is
    for name, value in field.value.items():
        here = Field(field.document, _under(field, name), value)
        kind = known.get(str(name), (newer or {}).get(str(name)))
        if kind is not None:
            yield from _of_kind(here, kind)
            continue
        near = difflib.get_close_matches(str(name), [*known, *(newer or ())], 1, _NEARLY)
        if str(name) in _GONE:
            text = _GONE[str(name)]
            yield refused(here, text) if newer is None else odd(here, text)
        elif near:
            yield refused(here, f"is no field that guests know; did you mean {near[0]}?")
        elif newer is None and strict:
            yield refused(here, "is no field that guests of this version know")
        else:
            yield odd(here, "is no field that is known here")


def _under(field: Field, name: object) -> str:
    return f"{field.path}.{name}" if field.path else str(name)


def _of_kind(field: Field, kind: Kind) -> Iterator[Finding]:
    if field.value is not None and not _is(field.value, kind):
        yield refused(field, f"must be {kind.value}")


def _is(value: object, kind: Kind) -> bool:
    match kind:
        case Kind.TEXT:
            return isinstance(value, _SCALARS)
        case Kind.TEXTS:
            return isinstance(value, list) and all(isinstance(one, _SCALARS) for one in value)
        case Kind.WHOLE:
            return isinstance(value, int) and not isinstance(value, bool)
        case Kind.NUMBER:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case Kind.SWITCH:
            return isinstance(value, bool)
        case Kind.MAP:
            return isinstance(value, dict)
        case Kind.TEXT_MAP:
            return isinstance(value, dict) and all(
                one is None or isinstance(one, _SCALARS) for one in value.values()
            )
        case Kind.LIST:
            return isinstance(value, list)
        case Kind.MAPS:
            return isinstance(value, list) and all(isinstance(one, dict) for one in value)
        case Kind.ANY:
            return True
