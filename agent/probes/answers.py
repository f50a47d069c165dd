"""Judging what a guest serves about itself. Pure; the guest is not trusted.

Invariant: any bytes give a reading. What does not have the contract's form is a failure told in a
sentence, never an exception; what is kept of it is bounded in size and depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.probes.stages import DONE

MAX_BODY_BYTES = 64 * 1024
MAX_KEPT_BYTES = 2048
_MAX_DEPTH = 12
_MAX_MEMBERS = 4096
_STATUSES = DONE | {"pending", "failed"}
_NO_SUCH_DOCUMENT = 404
_UNSET_MOMENT = "0001-01-01T00:00:00"
_NO_HEALTHCHECK = frozenset({"", "none"})


@dataclass(frozen=True, slots=True)
class Reading:
    """A document as the guest gave it, or None, and what is wrong with what it says, or None.

    `code`: why there is no answer at all; None of one that was given.
    """

    document: dict[str, Any] | None
    problem: str | None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class BootReading:
    """The boot stages. `failed`: the stage that failed, with its detail. `code`: as of Reading."""

    document: dict[str, Any] | None
    problem: str | None
    complete: bool = False
    failed: str | None = None
    code: str | None = None


def printable(raw: bytes | str, limit: int = MAX_KEPT_BYTES) -> str:
    """At most `limit` characters, on one line, without control characters."""
    text = (
        raw[: 4 * limit].decode(errors="replace") if isinstance(raw, bytes) else raw[: 4 * limit]
    )
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def read_document(status: int, body: bytes) -> Reading:
    """A JSON object within the bounds, out of a 200 answer."""
    if status != 200:
        return Reading(None, f"HTTP {status}: {printable(body)}")
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reading(None, f"its answer is not JSON: {printable(body)}")
    if not isinstance(document, dict):
        return Reading(None, f"its answer is not a JSON object: {printable(body)}")
    if not _bounded(document):
        return Reading(None, "its answer is nested too deeply or has too many members")
    return Reading(document, None)


def judge_boot_stages(reading: Reading) -> BootReading:
    """Complete when every stage is done and the guest says when it was."""
    if reading.document is None:
        return BootReading(None, reading.problem, code=reading.code)
    stages = reading.document.get("stages")
    if not isinstance(stages, list) or not stages:
        return BootReading(None, "its boot stages are not a list")
    running = None
    for stage in stages:
        if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
            return BootReading(None, "one of its boot stages has no name")
        name, status = printable(stage["name"], 100), stage.get("status")
        if not isinstance(status, str) or status not in _STATUSES:
            return BootReading(None, f"boot stage {name} has no known status")
        if status == "failed":
            failed = _told(name, stage.get("detail"))
            return BootReading(reading.document, f"boot stage {failed}", failed=failed)
        if status not in DONE:
            running = running or name
    if running is not None:
        return BootReading(reading.document, f"boot stage {running} is not done")
    if not _is_moment(reading.document.get("completed_at")):
        return BootReading(reading.document, "its boot is not completed")
    return BootReading(reading.document, None, complete=True)


def _is_moment(value: object) -> bool:
    """Whether it is one that was set: an unset one of the guest's language is the year 1."""
    return bool(value) and not (isinstance(value, str) and value.startswith(_UNSET_MOMENT))


def tells_nothing(status: int | None, reading: Reading) -> bool:
    """Whether a guest has no word on its containers: no such document, or one without a list."""
    if reading.document is None:
        return status == _NO_SUCH_DOCUMENT
    return bool(reading.document.get("unavailable")) and not reading.document.get("containers")


def judge_containers(reading: Reading, wanted: Sequence[str]) -> Reading:
    """Every wanted container is there, runs, and is healthy where it has a health check."""
    if reading.document is None:
        return reading
    unavailable = reading.document.get("unavailable")
    if unavailable:
        return Reading(reading.document, f"its containers are not known: {_text(unavailable)}")
    containers = reading.document.get("containers")
    if not isinstance(containers, list):
        return Reading(None, "its containers are not a list")
    if not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in containers):
        return Reading(None, "one of its containers has no name")
    for name in wanted:
        found = [container for container in containers if container["name"] == name]
        if not found:
            return Reading(reading.document, f"container {name} is missing")
        for container in found:
            problem = _container_problem(container)
            if problem:
                return Reading(reading.document, f"container {name} {problem}")
    return reading


def _container_problem(container: dict[str, Any]) -> str | None:
    status = container.get("status")
    if container.get("oom_killed") is True:
        return "was killed for want of memory"
    if status != "running":
        told = f"is {_text(status)}" if status else "does not run"
        code = container.get("exit_code")
        exited = f" with code {_text(code)}" if status == "exited" and code is not None else ""
        error = container.get("error")
        return f"{told}{exited}" + (f": {_text(error)}" if error else "")
    health = container.get("health")
    if health is None:
        return None
    word = health.get("status") if isinstance(health, dict) else None
    if not isinstance(word, str):
        return "has a health of unknown form"
    return None if word == "healthy" or word in _NO_HEALTHCHECK else f"is {_text(word)}"


def _told(name: str, detail: object) -> str:
    return f"{name}: {_text(detail)}" if detail else name


def _text(value: object) -> str:
    return printable(value if isinstance(value, str) else repr(value), 500)


def _bounded(document: dict[str, Any]) -> bool:
    """Whether it is no deeper and has no more members than we want to keep."""
    level: list[Any] = [document]
    seen = 0
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        seen += len(inner)
        if not inner:
            return True
        if seen > _MAX_MEMBERS:
            return False
        level = inner
    return False
