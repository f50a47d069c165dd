"""Whether the chain of events still holds. Pure."""

from __future__ import annotations

from typing import Any

from agent.cli.exits import Exit, Failure
from agent.model.event import GENESIS, STORE_RESTORED, hash_of


class Chain:
    """Checks that each event's hash is its own and the next one's previous."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._previous: str | None = None
        self._first = 0
        self._last = 0
        self._gaps: list[str] = []

    def add(self, event: dict[str, Any]) -> None:
        sequence = int(event["sequence"])
        if hash_of(event) != event["hash"]:
            raise Failure(Exit.FAILED, f"event {sequence} is not what was recorded")
        expected = self._previous
        if expected is None and self._whole and sequence == 1:
            expected = GENESIS
        if expected is not None and event["previous"] != expected:
            raise Failure(Exit.FAILED, f"the chain is broken before event {sequence}")
        if self._last and sequence != self._last + 1:
            if event["kind"] != STORE_RESTORED or sequence < self._last:
                found = f"events are missing between {self._last} and {sequence}"
                raise Failure(Exit.FAILED, found)
            self._gaps.append(f"; what came between {self._last} and {sequence} was lost")
        self._first = self._first or sequence
        self._last = sequence
        self._previous = event["hash"]

    def told(self) -> str:
        if not self._last:
            return "no events to verify"
        return f"the chain holds from event {self._first} to {self._last}{''.join(self._gaps)}"
