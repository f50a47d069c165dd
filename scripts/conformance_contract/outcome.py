"""What a stage comes to, and how it is told: the public contract's exit codes and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Of the contract. INTERNAL: a defect of ours, never a verdict."""

    ACCEPTED = 0
    INTERNAL = 1
    REJECTED = 10
    UNSUPPORTED = 20
    MALFORMED = 30


@dataclass(frozen=True, slots=True)
class Accepted:
    """`outputs`: as the stage's output schema has them."""

    outputs: dict[str, Any]


class Rejected(Exception):
    """`code`: of the contract. `stage`: where it is of another stage than the one asked for."""

    def __init__(self, code: str, detail: str, stage: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.stage = stage


class Unsupported(Exception):
    """The question is understood and not answered here."""


class Malformed(Exception):
    """The input is not what the stage's schema asks for."""


def rejection(
    codes: Mapping[str, str], ours: str, detail: str, *, other: str, stage: str | None = None
) -> Rejected:
    """Our code in the contract's words; `other` where it has none for it."""
    return Rejected(codes.get(ours, other), f"{ours}: {detail}", stage)
