"""JSON, base64 and hex read strictly: one value has one spelling, or it is refused. Pure.

Whoever may spell one value in two ways may show one meaning to us and another to somebody else.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from agent.attestation.evidence import EvidenceError

T = TypeVar("T")

_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)
_MAX_DEPTH = 32


class DocumentPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts of a document: a member that is not known refuses all of it."""


def read_json(data: bytes, kind: type[T], what: str) -> T:
    """One JSON value of this type and nothing after it. Raises `document_malformed`.

    Unknown and duplicate members, numbers beyond JSON (NaN), what is not UTF-8, and depth beyond
    32 are refused.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant
        )
        _require_shallow(value)
        return msgspec.convert(value, kind, strict=True)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise malformed(what, _shown(error)) from error


def canonical_base64(text: str, what: str, max_bytes: int) -> bytes:
    """The bytes. Raises `document_malformed` for another spelling of them, or too many."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise malformed(what, "it is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise malformed(what, "it is not canonical base64")
    if len(data) > max_bytes:
        raise EvidenceError("document_too_large", f"{what} is longer than {max_bytes} bytes")
    return data


def lower_hex(text: str, what: str, size: int | None = None) -> bytes:
    """The bytes, `size` of them if given. Raises `document_malformed`."""
    if not text or not _HEX.fullmatch(text):
        raise malformed(what, "it is not hex in lower case")
    data = bytes.fromhex(text)
    if size is not None and len(data) != size:
        raise malformed(what, f"it has {len(data)} bytes, not {size}")
    return data


def malformed(what: str, why: str) -> EvidenceError:
    """The refusal of a document, or of a part of it."""
    return EvidenceError("document_malformed", f"{what}: {why}")


def shown(value: str) -> str:
    """What a guest wrote, fit for print."""
    return repr(value if len(value) <= 80 else value[:79] + "…")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _require_shallow(value: object) -> None:
    level: list[object] = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")


def _shown(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case RecursionError():
            return "it is nested too deeply"
        case msgspec.ValidationError():
            return str(error).replace("`", "")[:200]
    return str(error)[:200]
