"""Parameters after the question mark: declared in the table, read strictly, others refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent.api.body import shown
from agent.api.problems import HttpError
from agent.api.route import Query
from agent.model import ids
from agent.wire.text import DEPLOYMENT_PATTERN, NONCE_PATTERN

MAX_SEQUENCE = 2**53 - 1
MAX_TAIL = 8 * 1024 * 1024

_NONCE = re.compile(NONCE_PATTERN)


def _whole(first: int, last: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= 16 and first <= int(text) <= last:
            return int(text)
        raise ValueError(f"must be a whole number from {first} to {last}")

    return read


def _flag(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("must be 0 or 1")
    return text == "1"


def _nonce(text: str) -> str:
    if not _NONCE.fullmatch(text):
        raise ValueError("must be 64 digits of hex in lower case")
    return text


def _between(first: int, last: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": first, "maximum": last}


AFTER = Query(
    "after",
    _whole(0, MAX_SEQUENCE),
    _between(0, MAX_SEQUENCE),
    "Only events with a higher sequence.",
)
LIMIT = Query("limit", _whole(1, 1000), _between(1, 1000), "At most so many events.")
FOLLOW = Query(
    "follow", _flag, {"type": "integer", "enum": [0, 1]}, "1: go on, as server-sent events."
)
TAIL = Query(
    "tail", _whole(1, MAX_TAIL), _between(1, MAX_TAIL), "How many of the newest bytes; 65536."
)
NONCE = Query(
    "nonce",
    _nonce,
    {"type": "string", "pattern": NONCE_PATTERN},
    "What the evidence must answer to.",
)


DEPLOYMENT = Query(
    "deployment",
    ids.parse_deployment_name,
    {"type": "string", "pattern": DEPLOYMENT_PATTERN, "maxLength": 63},
    "Of this deployment; it may be deleted.",
    required=True,
)


def read_query(declared: Sequence[Query], given: Mapping[str, str]) -> dict[str, Any]:
    """The values by name; HttpError 400 with the parameter's name."""
    known = {one.name: one for one in declared}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise HttpError(
                400, "bad_request", f"{shown(name)} is not a known parameter", field=name[:80]
            )
        if name in values:
            raise HttpError(400, "bad_request", f"{name}: is given twice", field=name)
        try:
            values[name] = known[name].read(text)
        except ValueError as error:
            raise HttpError(400, "bad_request", f"{name}: {error}", field=name) from None
    for one in declared:
        if one.required and one.name not in values:
            raise HttpError(400, "bad_request", f"{one.name}: is needed", field=one.name)
    return values
