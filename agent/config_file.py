"""The configuration file and what the environment overrides in it, read into a `Config`.

Whatever is wrong is told at once, a line `path: reason` each; there is no default for a value that
is wrong. A relative path is relative to the file's directory. A variable `ENCLAVE_AGENT_A__B`
replaces `a.b`: text as it is, other types in YAML, and empty for null.
"""

from __future__ import annotations

import os
import types
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import msgspec

from agent.config import Config, Tee
from agent.config_fields import CHECKS
from agent.errors import AgentError
from agent.model.addresses import network
from agent.model.resources import Listen
from agent.strict_yaml import MAX_BYTES, StrictYamlError, load_strict_yaml

ENV_PREFIX = "ENCLAVE_AGENT_"
_NOT_SETTINGS = frozenset(  # of the command line
    f"ENCLAVE_AGENT_{name}"
    for name in ("SOCKET", "URL", "CERTIFICATE", "KEY", "CA", "GUEST_IMAGE")
)
_SOURCES = frozenset({"releases.source", "releases.image_sources"})
_PATH_OR_NAME = frozenset({"qemu.binary", "host.nvml_library", "host.gpu_tools"})
_MAY_BE_OFF = frozenset({"secrets.at_rest", "qemu.cage"})
_MAX_SOCKET_BYTES = 107
_MAX_BELOW_RUN_DIR = 32  # bytes of the longest socket path in it, generously
_MAX_SHOWN = 200


class ConfigError(AgentError):
    """The configuration is wrong. `problems` are lines `path: reason`, all that could be found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)

    @property
    def code(self) -> str:
        return "config_invalid"


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file (None: there is none), apply the environment, fill in what follows.

    `releases.cache_dir` and `listen.socket` are never None in the result, and every path is
    absolute. Raises ConfigError.
    """
    raw = {} if path is None else _read(path)
    overrides = {
        name.removeprefix(ENV_PREFIX).lower().replace("__", "."): (name, value)
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and name not in _NOT_SETTINGS
    }
    reading = _Reading(path.absolute().parent if path else None, overrides)
    config: Config | None = reading.section(Config, raw, "")
    problems = [*reading.problems, *reading.unused()]
    if not problems and config is not None:
        problems = _contradictions(config)
    if problems or config is None:
        raise ConfigError(problems)
    return _with_derived(config)


def _read(path: Path) -> object:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return load_strict_yaml(data)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except StrictYamlError as error:
        raise ConfigError([f"{path}: {error}"]) from error


class _Reading:
    """One walk of the structs beside what was read. Goes on after a problem."""

    def __init__(self, base: Path | None, overrides: dict[str, tuple[str, str]]) -> None:
        self._base = base
        self._overrides = overrides
        self._used: set[str] = set()
        self.problems: list[str] = []

    def section(self, kind: type[Any], raw: object, at: str) -> Any:
        """The struct; None if it could not be made, with the problems noted."""
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            self.problems.append(f"{at.rstrip('.') or 'the file'}: must be a mapping of settings")
            return None
        fields = msgspec.structs.fields(kind)
        names = {field.name for field in fields}
        self.problems += [f"{at}{_shown(key)}: no such setting" for key in raw if key not in names]
        before = len(self.problems)
        values = {}
        for field in fields:
            path = at + field.name
            nested, words = _section_of(field.type), _words_of(field.type)
            word = path in self._overrides or isinstance(raw.get(field.name), str)
            if nested is not None and words is not None and word:
                values[field.name] = self._value(path, words, raw.get(field.name))
            elif nested is not None:
                if raw.get(field.name) is not None or self._is_overridden(path):
                    values[field.name] = self.section(nested, raw.get(field.name), path + ".")
            elif path in self._overrides or field.name in raw:
                values[field.name] = self._value(path, field.type, raw.get(field.name))
            elif field.required:
                self.problems.append(f"{path}: must be set")
        return kind(**values) if len(self.problems) == before else None

    def unused(self) -> list[str]:
        """Variables that name no setting."""
        left = sorted(set(self._overrides) - self._used)
        return [f"{self._overrides[path][0]}: no such setting" for path in left]

    def _is_overridden(self, path: str) -> bool:
        return any(name.startswith(path + ".") for name in self._overrides)

    def _value(self, path: str, kind: Any, raw: object) -> Any:
        place, base = path, self._base
        if path in self._overrides:
            place, text = self._overrides[path]
            self._used.add(path)
            base = None
            raw = _from_text(text, kind)
        try:
            value = _convert(path, kind, raw, base)
        except ValueError as error:
            self.problems.append(f"{place}: {str(error)[:_MAX_SHOWN]}")
            return None
        check = CHECKS.get(path)
        reason = check(value) if check else None
        if reason is not None:
            self.problems.append(f"{place}: {reason[:_MAX_SHOWN]}")
        return value


def _shown(key: object) -> str:
    text = str(key)[:64]
    return text if text.isprintable() else repr(text)


def _section_of(kind: Any) -> type[msgspec.Struct] | None:
    structs = [m for m in _members(kind) if isinstance(m, type) and issubclass(m, msgspec.Struct)]
    return structs[0] if structs else None


def _words_of(kind: Any) -> type[StrEnum] | None:
    """The words that may stand in the place of a section, if there are any."""
    found = [m for m in _members(kind) if isinstance(m, type) and issubclass(m, StrEnum)]
    return found[0] if found else None


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _from_text(text: str, kind: Any) -> object:
    members = _members(kind)
    if not text and type(None) in members:
        return None
    textual = (type(None), Path, str)
    if all(m in textual or (isinstance(m, type) and issubclass(m, StrEnum)) for m in members):
        return text
    try:
        return load_strict_yaml(text.encode(errors="surrogateescape"), max_bytes=4096)
    except StrictYamlError:
        return text


def _convert(path: str, kind: Any, raw: object, base: Path | None) -> Any:
    """The value with its type. Raises ValueError with the reason."""
    members = _members(kind)
    if Path in members:
        return None if raw is None and type(None) in members else _path(raw, base)
    if path in _MAY_BE_OFF and raw is False:
        raw = "off"  # YAML 1.1 reads the word as a truth value
    words = [str(word) for word in _words_of(kind) or ()]
    absent = raw is None and type(None) in members
    if words and raw not in words and not absent and _section_of(kind) is None:
        raise ValueError(f"must be one of {', '.join(words)}")
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).lower().replace("`", "")) from None
    if isinstance(value, str) and _names_a_file(path, value):
        return str(_path(value, base))
    if path == "releases.image_sources":
        return tuple(str(_path(one, base)) if _names_a_file(path, one) else one for one in value)
    return value


def _names_a_file(path: str, value: str) -> bool:
    if path in _SOURCES:
        return value != "github" and ":" not in value.split("/", 1)[0]
    return path in _PATH_OR_NAME and "/" in value


def _path(raw: object, base: Path | None) -> Path:
    if not isinstance(raw, str) or not raw:
        raise ValueError("must be a path")
    if not raw.isprintable():
        raise ValueError("must not hold unprintable characters")
    if raw.startswith("~"):
        raise ValueError("'~' is not expanded; name the directory")
    if base is None and not raw.startswith("/"):
        raise ValueError("must be an absolute path")
    return Path(os.path.normpath((base or Path("/")) / raw))


def _with_derived(config: Config) -> Config:
    replace = msgspec.structs.replace
    releases, listen = config.releases, config.listen
    return replace(
        config,
        releases=replace(releases, cache_dir=releases.cache_dir or config.state_dir / "cache"),
        listen=replace(listen, socket=listen.socket or config.run_dir / "agent.sock"),
    )


def _contradictions(config: Config) -> list[str]:
    """What no field says alone."""
    found = []
    if config.tee is Tee.NONE and not config.allow_unattested:
        found.append("allow_unattested: must be true for tee: none")
    snp = config.attestation.snp
    if snp.minimum_guest_svn and snp.id_key_digest is None:
        found.append(
            "attestation.snp.minimum_guest_svn: needs attestation.snp.id_key_digest: without an "
            "ID key the host itself says which SVN a guest has"
        )
    if config.releases.require_signature and config.releases.signature.trusted_root is None:
        found.append("releases.signature.trusted_root: must be set for releases.require_signature")
    if len(os.fsencode(config.run_dir)) > _MAX_SOCKET_BYTES - _MAX_BELOW_RUN_DIR:
        limit = _MAX_SOCKET_BYTES - _MAX_BELOW_RUN_DIR
        found.append(f"run_dir: must be at most {limit} bytes, for the sockets in it")
    if config.listen.socket and len(os.fsencode(config.listen.socket)) > _MAX_SOCKET_BYTES:
        found.append(f"listen.socket: must be at most {_MAX_SOCKET_BYTES} bytes")
    if config.state_dir == config.run_dir:
        found.append("run_dir: must be another directory than state_dir")
    status, rpc = config.listen.status, config.listen.rpc
    if config.listen.tls and status and rpc and Listen.parse(status).overlaps(Listen.parse(rpc)):
        found.append("listen.rpc: must not take the same connections as listen.status")
    guests = config.attestation.collateral.listen
    for name, other in (
        ("listen.status", status),
        ("listen.rpc", rpc if config.listen.tls else None),
    ):
        if guests and other and Listen.parse(guests).overlaps(Listen.parse(other)):
            found.append(
                f"attestation.collateral.listen: must not take the same connections as {name}"
            )
    for number, prefix in enumerate(config.listen.floating, 1):
        if network(prefix).overlaps(network(config.network.subnet)):
            found.append(f"listen.floating: number {number}: must not overlap network.subnet")
    if config.coordinator.url and not config.listen.tls:
        found.append("listen.tls: must be set for coordinator.url: a coordinator wants to see it")
    if config.coordinator.enrol_token_file and not config.coordinator.url:
        found.append("coordinator.url: must be set for coordinator.enrol_token_file")
    return found
