"""Judging the workload's own answer. Pure.

Invariant: only what the workload itself said is held against it, or speaks for it. The guest's
shim stands before it and answers by itself: 503 until the workload is up, 502 where nothing
listens, 401 or 403 where a key is due, 404 for a path that it does not let through. The first two
say that the workload does not serve; the others say nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.probes.answers import printable
from agent.probes.choice import must_say_yes
from agent.strict_json import StrictJsonError, load_strict_json

_GUARDING = frozenset({401, 403})
_NOT_FOUND = {"message": "Not found.", "type": "invalid_request_error"}
_ELSEWHERE = "name another path with probes.path (--probe-path)"
_BY_NAME = "if it minds the name of the host, give it with probes.host (--probe-host)"
_REMEDIES = {
    400: _BY_NAME,
    401: f"the workload wants credentials there: {_ELSEWHERE}",
    403: f"the workload wants credentials there: {_ELSEWHERE}",
    404: f"the workload has no such path: {_ELSEWHERE}",
    405: f"the workload takes no GET there: {_ELSEWHERE}",
    421: _BY_NAME,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for. `named`: by the deployment. `guarded`: the shim wants a key there."""

    path: str
    named: bool = False
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """`problem`: what is wrong, or None. `unknown`: why the answer tells nothing, or None."""

    problem: str | None = None
    unknown: str | None = None


def judge_workload(asked: Asked, status: int, body: bytes) -> Judgement:
    """What an answer says of the workload.

    A path that is there for the purpose must say yes: 2xx or 3xx. At every other one any answer
    of the workload itself shows that it lives.
    """
    if asked.guarded and status in _GUARDING:
        return Judgement(unknown=f"HTTP {status}: the guest's shim wants a key there")
    if status == 404 and _is_shims(body):
        return _not_let_through(asked)
    limit = 400 if must_say_yes(asked.path, named=asked.named) else 500
    if 200 <= status < limit:
        return Judgement()
    told = f"HTTP {status}: {_said(body)}"
    remedy = _REMEDIES.get(status)
    return Judgement(problem=f"{told} ({remedy})" if remedy else told)


def _not_let_through(asked: Asked) -> Judgement:
    """The release's config was read otherwise than its shim reads it, or the shim is newer."""
    said = "HTTP 404: the guest's shim lets no request through there"
    if asked.named:
        return Judgement(problem=f"{said}; {_ELSEWHERE}")
    return Judgement(unknown=said)


def _is_shims(body: bytes) -> bool:
    """Whether this is the shim's own 404: its headers are on the workload's answers, too."""
    return _error_of(body) == _NOT_FOUND


def _said(body: bytes) -> str:
    """What to quote: of an error with a message that one, not all that the guest sent beside it.

    The shim's 503 holds all boot stages, and those come before its error.
    """
    match _error_of(body):
        case {"message": str(message), "status": str(status)} if message:
            return printable(f"{message} ({status})")
        case {"message": str(message)} if message:
            return printable(message)
    return printable(body)


def _error_of(body: bytes) -> object:
    try:
        document = load_strict_json(body)
    except StrictJsonError:
        return None
    return document.get("error") if isinstance(document, dict) else None
