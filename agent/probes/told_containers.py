"""What a guest says of itself: whose it is, and what it runs. Pure; the guest is not trusted.

Only what the contract has is read; what is told is bounded and on one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.probes.answers import printable

_MOST = 64
_MAX_NAME = 128
_MAX_IMAGE = 512
_MAX_STATE = 200


@dataclass(frozen=True, slots=True)
class ToldContainer:
    """One container as its guest tells of it. `played`: nothing of its image runs."""

    name: str
    image: str
    state: str
    played: bool


def guest_itself(boot_stages: dict[str, Any] | None) -> str | None:
    """Whose guest it says it is; the public one says nothing of the kind."""
    said = (boot_stages or {}).get("guest")
    return (printable(said, _MAX_NAME) or None) if isinstance(said, str) else None


def told_containers(document: dict[str, Any] | None) -> tuple[ToldContainer, ...]:
    """Out of a document that was judged; none of what has no name."""
    listed = document.get("containers") if document else None
    rows = listed if isinstance(listed, list) else []
    return tuple(
        ToldContainer(
            name=printable(row["name"], _MAX_NAME),
            image=_text(row.get("image"), _MAX_IMAGE),
            state=_state(row),
            played=row.get("played") is True,
        )
        for row in rows[:_MOST]
        if isinstance(row, dict) and isinstance(row.get("name"), str)
    )


def _state(row: dict[str, Any]) -> str:
    """`running, healthy`; `exited with code 1: reason`; how often it was started again."""
    state = _text(row.get("status"), _MAX_STATE) or "not known"
    code, error = row.get("exit_code"), row.get("error")
    if state == "exited" and isinstance(code, int):
        state += f" with code {code}"
    if row.get("oom_killed") is True:
        state += ", killed for want of memory"
    if isinstance(error, str) and error:
        state += f": {error}"
    health = row.get("health")
    word = health.get("status") if isinstance(health, dict) else None
    if isinstance(word, str) and word not in ("", "none"):
        state += f", {word}"
    restarts = row.get("restart_count")
    if isinstance(restarts, int) and restarts > 0:
        state += f", restarted {restarts} times"
    return printable(state, _MAX_STATE)


def _text(value: object, limit: int) -> str:
    return printable(value, limit) if isinstance(value, str) else ""
