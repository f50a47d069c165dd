"""What a run of the bench may be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The defaults are what the bounds are stated for."""

    rounds: int = 7
    updates: int | None = None  # each suite has its own
    backends: tuple[str, ...] = ()
    prove_red: bool = False
    seconds: float = 60
    patience_s: float = 180
    attacks: tuple[str, ...] = ()  # only those whose names have one of these in them
