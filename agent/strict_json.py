"""JSON of others read strictly: one meaning for every reader, or an error that says what is wrong.

RFC 8259 leaves to each reader what a member that stands twice means, half of a surrogate pair, or
a number that fits nowhere; two readers could see two things. Here all of that is refused, with
NaN, what is not UTF-8, and depth. Whatever the bytes are, nothing but StrictJsonError comes out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

import msgspec

from agent.errors import AgentError

MAX_DEPTH = 32
MAX_DIGITS = 128  # of an integer; whoever wants a number of one field says what is its range
T = TypeVar("T")


class StrictJsonError(AgentError):
    """The text is not acceptable. It says which rule, never what stands in it."""

    @property
    def code(self) -> str:
        return "json_invalid"


def load_strict_json(data: bytes) -> Any:
    """One value of None, bool, int, finite float, str, list and dict; nothing after it.

    Bounding the size is the caller's. Raises StrictJsonError.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_members,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise StrictJsonError("it is not UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise StrictJsonError(f"{error.msg} ({place})") from error
    except RecursionError as error:
        raise StrictJsonError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    _require_sound(value)
    return value


def decode_strict_json(data: bytes, kind: type[T]) -> T:
    """The value as a `kind`, which may have members of type `msgspec.Raw`. Raises StrictJsonError.

    What is of another type is told with its place, as in `$.items[0].id`.
    """
    load_strict_json(data)
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise StrictJsonError(str(error).replace("`", "")[:200]) from error


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise StrictJsonError("a member is there twice in one object")
    return members


def _no_constant(word: str) -> NoReturn:
    raise StrictJsonError(f"{word} is not a number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise StrictJsonError(f"it has an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise StrictJsonError("it has a number beyond what a double holds")
    return value


def _require_sound(value: object) -> None:
    """Without recursion: no deeper than the bound, and every text can be written as UTF-8."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for one in level:
            if isinstance(one, str):
                _require_text(one)
            elif isinstance(one, dict):
                _require_texts(one)
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
        if not inner:
            return
        level = inner
    raise StrictJsonError(f"it is nested deeper than {MAX_DEPTH} levels")


def _require_texts(texts: Iterable[str]) -> None:
    for text in texts:
        _require_text(text)


def _require_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StrictJsonError("a text in it has half of a surrogate pair") from error
