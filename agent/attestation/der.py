"""Strict DER (ITU-T X.690), as far as certificates and revocation lists need it. Pure.

Own code, because a VCEK's serial number is 0, which parsing libraries warn of today and mean to
refuse. Invariant: one value has one encoding; whatever else is in the bytes is a DerError.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import NamedTuple

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
UTF8_STRING = 0x0C
PRINTABLE_STRING = 0x13
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31

_TEXTS = frozenset({UTF8_STRING, PRINTABLE_STRING, IA5_STRING})
# Far beyond what is in use: a number of any length could not even be printed.
_MAX_INTEGER_BYTES = 64
_MAX_OID_BYTES = 128
_TIME_SIZES = {UTC_TIME: 13, GENERALIZED_TIME: 15}


class DerError(ValueError):
    """Not the DER that was expected; the text says what stands where."""


class DerElement(NamedTuple):
    """One element: its tag, its content, and all of its bytes."""

    tag: int
    content: bytes
    raw: bytes


class Fields:
    """The elements of a constructed value, taken in order."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def left(self) -> bool:
        """Whether something is left."""
        return self._at < len(self._content)

    def take(self, tag: int, what: str) -> DerElement:
        """The next element, which must be of this tag. Raises DerError with `what`."""
        content, at = self._content, self._at
        if at >= len(content):
            raise DerError(f"{what} is missing")
        if content[at] != tag:
            raise DerError(f"{what} has tag {content[at]:#04x}, not {tag:#04x}")
        element, self._at = _element(content, at)
        return element

    def next(self, what: str) -> DerElement:
        """The next element, of whatever tag. Raises DerError with `what`."""
        if not self.left:
            raise DerError(f"{what} is missing")
        element, self._at = _element(self._content, self._at)
        return element

    def holds(self, tag: int) -> bool:
        """Whether the next element is of this tag."""
        return self.left and self._content[self._at] == tag

    def optional(self, tag: int, what: str) -> DerElement | None:
        """As `take`, or None if the next element is another one, or there is none."""
        return self.take(tag, what) if self.holds(tag) else None

    def end(self, what: str) -> None:
        """Raises DerError if anything is left."""
        if self.left:
            raise DerError(f"{what} has {len(self._content) - self._at} bytes too many")


def sole(data: bytes, tag: int, what: str) -> DerElement:
    """The one element that is all of `data`. Raises DerError."""
    fields = Fields(data)
    element = fields.take(tag, what)
    fields.end(what)
    return element


def integer(content: bytes, what: str) -> int:
    """A whole number in its shortest form. Raises DerError."""
    padded = len(content) > 1 and content[0] in (0, 0xFF) and content[0] >> 7 == content[1] >> 7
    if not content or padded:
        raise DerError(f"{what} is not a shortest integer")
    if len(content) > _MAX_INTEGER_BYTES:
        raise DerError(f"{what} is longer than {_MAX_INTEGER_BYTES} bytes")
    return int.from_bytes(content, signed=True)


@lru_cache(maxsize=256)
def oid(content: bytes, what: str) -> str:
    """An object identifier in dotted notation. Raises DerError."""
    if not content or content[-1] & 0x80:
        raise DerError(f"{what} is not an object identifier")
    if len(content) > _MAX_OID_BYTES:
        raise DerError(f"{what} is longer than {_MAX_OID_BYTES} bytes")
    arcs: list[int] = []
    value, fresh = 0, True
    for byte in content:
        if fresh and byte == 0x80:
            raise DerError(f"{what} is not a shortest object identifier")
        value, fresh = value << 7 | byte & 0x7F, not byte & 0x80
        if fresh:
            arcs.append(value)
            value = 0
    top = min(arcs[0] // 40, 2)
    return ".".join(map(str, (top, arcs[0] - 40 * top, *arcs[1:])))


def octets(content: bytes, what: str) -> bytes:
    """The bytes of a BIT STRING of whole bytes. Raises DerError."""
    if not content or content[0] != 0:
        raise DerError(f"{what} is not a string of whole bytes")
    return content[1:]


def text(element: DerElement, what: str) -> str:
    """Characters of a UTF8String, PrintableString or IA5String. Raises DerError."""
    try:
        if element.tag in _TEXTS:
            encoding = "utf-8" if element.tag == UTF8_STRING else "ascii"
            return element.content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DerError(f"{what} holds bytes that are no characters") from error
    raise DerError(f"{what} is not text")


def moment(fields: Fields, what: str) -> dt.datetime:
    """The next element, a Time of RFC 5280, 4.1.2.5 (seconds, Z). Raises DerError."""
    element = fields.optional(UTC_TIME, what) or fields.take(GENERALIZED_TIME, what)
    shown = element.content
    if len(shown) != _TIME_SIZES[element.tag] or not shown[:-1].isdigit() or shown[-1:] != b"Z":
        raise DerError(f"{what} is not a time")
    if element.tag == UTC_TIME:  # RFC 5280: 50 to 99 are of the 20th century
        shown = (b"19" if shown >= b"5" else b"20") + shown
    try:
        month, day, hour, minute, second = (int(shown[at : at + 2]) for at in range(4, 14, 2))
        return dt.datetime(int(shown[:4]), month, day, hour, minute, second, tzinfo=dt.UTC)
    except ValueError as error:
        raise DerError(f"{what} is not a time") from error


def _element(data: bytes, at: int) -> tuple[DerElement, int]:
    """The element that begins there, and where it is over."""
    if at + 2 > len(data):
        raise DerError("the data ends inside an element")
    tag, size, inside = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise DerError("a tag of more than one byte")
    if size > 0x7F:
        count = size & 0x7F
        inside += count
        size = int.from_bytes(data[at + 2 : inside])
        if not 1 <= count <= 4 or size < 0x80 or size.bit_length() <= 8 * (count - 1):
            raise DerError("a length that is not the shortest")
    if inside + size > len(data):
        raise DerError("the data ends inside an element")
    after = inside + size
    return DerElement(tag, data[inside:after], data[at:after]), after
