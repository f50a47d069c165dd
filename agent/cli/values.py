"""Variables, secrets and probes from the command line.

A secret's value never is an argument: every user of the machine can read the arguments of a
process. No message here repeats what stands where a secret was expected.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import UNSET, UnsetType

from agent.cli.exits import Exit, Failure
from agent.model.ids import parse_variable_name
from agent.model.resources import Publish
from agent.wire.requests import ProbesChange, PublishRequest
from agent.wire.text import MAX_VALUE_BYTES, NO_SECRETS


def parse_variables(entries: Iterable[str]) -> dict[str, str]:
    """From `K=V`."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise Failure(Exit.USAGE, f"--variable '{entry}': must be K=V")
        found[_name("--variable", name, found)] = value
    return found


def read_secrets(entries: Iterable[str]) -> dict[str, str]:
    """From `K=@FILE` and `K=-`; stdin can be read for one of them only."""
    found: dict[str, str] = {}
    from_stdin: str | None = None
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not equals:
            raise Failure(Exit.USAGE, "a secret must be K=@FILE or K=-")
        _name("secret", name, found)
        if source == "-":
            if from_stdin is not None:
                raise Failure(
                    Exit.USAGE, f"secrets {from_stdin} and {name}: stdin can be only one of them"
                )
            from_stdin = name
            found[name] = _text(name, sys.stdin.buffer.read(MAX_VALUE_BYTES + 3))
        elif source.startswith("@"):
            found[name] = _text(name, _read(name, source[1:]))
        else:
            raise Failure(
                Exit.USAGE,
                f"secret {name}: its value must not be an argument",
                [
                    "every user of this machine can read the arguments of a process",
                    f"give it from a file or stdin: {name}=@FILE or {name}=-",
                ],
            )
    for name, value in found.items():
        if value in NO_SECRETS:
            detail = "must not be empty or the text null: guests take it as missing"
            raise Failure(Exit.USAGE, f"secret {name}: {detail}")
    return found


def parse_names(what: str, entries: Iterable[str]) -> list[str]:
    """Names alone, each once."""
    found: dict[str, str] = {}
    for entry in entries:
        found[_name(what, entry, found)] = ""
    return list(found)


def changes(values: Mapping[str, str], unset: Iterable[str]) -> dict[str, str | None] | UnsetType:
    """Those that are given, and those that go; UNSET if neither says anything."""
    gone = list(unset)
    for name in gone:
        if name in values:
            raise Failure(Exit.USAGE, f"{name}: is given and unset at once")
    return {**values, **dict.fromkeys(gone)} or UNSET


def parse_publish(entries: Iterable[str]) -> tuple[PublishRequest, ...]:
    """From `ADDR:PORT:GUESTPORT`."""
    found = []
    for text in entries:
        try:
            one = Publish.parse(text)
        except ValueError as error:
            raise Failure(Exit.USAGE, f"--publish '{text}': {error}") from None
        found.append(PublishRequest(listen=str(one.listen), guest_port=one.guest_port))
    return tuple(found)


def _name(what: str, name: str, found: dict[str, str]) -> str:
    try:
        parse_variable_name(name)
    except ValueError as error:
        raise Failure(Exit.USAGE, f"{what} '{name[:80]}': {error}") from None
    if name in found:
        raise Failure(Exit.USAGE, f"{what} {name}: is given twice")
    return name


def _read(name: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_VALUE_BYTES + 3)
    except OSError as error:
        raise Failure(Exit.USAGE, f"secret {name}: {path}: {error.strerror}") from None


def _text(name: str, data: bytes) -> str:
    """UTF-8 of at most 64 KiB, less one line end."""
    cut = data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
    if len(cut) > MAX_VALUE_BYTES:
        raise Failure(Exit.USAGE, f"secret {name}: is over {MAX_VALUE_BYTES // 1024} KiB")
    try:
        return cut.decode()
    except UnicodeDecodeError:
        raise Failure(Exit.USAGE, f"secret {name}: is not UTF-8 text") from None


def probes_change(path: str | None, host: str | None) -> ProbesChange | UnsetType:
    """What is not said is kept; an empty text removes."""
    if path is None and host is None:
        return UNSET
    return ProbesChange(
        path=UNSET if path is None else path or None,
        host=UNSET if host is None else host or None,
    )
