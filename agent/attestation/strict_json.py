"""JSON, base64 and hex read strictly: one value has one spelling, or it is refused. Pure.

Whoever may spell one value in two ways may show one meaning to us and another to somebody else.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TypeVar

import msgspec

from agent.attestation.evidence import EvidenceError
from agent.strict_json import StrictJsonError, decode_strict_json

T = TypeVar("T")

_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)


class DocumentPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts of a document: a member that is not known refuses all of it."""


def read_json(data: bytes, kind: type[T], what: str) -> T:
    """One JSON value of this type and nothing after it. Raises `document_malformed`, for unknown
    members of a DocumentPart and for whatever `decode_strict_json` refuses.
    """
    try:
        return decode_strict_json(data, kind)
    except StrictJsonError as error:
        raise malformed(what, str(error)) from error


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
