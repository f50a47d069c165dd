"""Reading of untrusted documents: every value with its path, so that a complaint names its place.

An error tells the field and the rule, never the value: a value may be huge, or secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from agent.releases.port import ReleaseError

_KINDS = {
    type(None): "nothing",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a map",
}


class ReleaseFieldError(ReleaseError):
    """One field of a release's documents is wrong. `path` is empty for the whole document."""

    def __init__(self, document: str, path: str, reason: str) -> None:
        place = f"{document}: {path}" if path else document
        super().__init__(f"{place}: {reason}")
        self.document = document
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Field:
    """A value, in which document it is and where."""

    document: str
    path: str
    value: object

    def error(self, reason: str) -> ReleaseFieldError:
        """The complaint about this field, to be raised by the caller."""
        return ReleaseFieldError(self.document, self.path, reason)

    def mapping(self) -> dict[object, object]:
        """The value as a map."""
        if not isinstance(self.value, dict):
            raise self._wrong("a map")
        return self.value

    def member(self, name: str) -> Field:
        """A member that must be there and not be null."""
        found = self.optional(name)
        if found is None:
            raise ReleaseFieldError(self.document, self._under(name), "is missing")
        return found

    def optional(self, name: str) -> Field | None:
        """A member; None if it is absent or null."""
        value = self.mapping().get(name)
        return None if value is None else Field(self.document, self._under(name), value)

    def items(self, most: int) -> list[Field]:
        """The members of a list, at most so many."""
        if not isinstance(self.value, list):
            raise self._wrong("a list")
        if len(self.value) > most:
            raise self.error(f"must have at most {most} entries, has {len(self.value)}")
        return [
            Field(self.document, f"{self.path}[{index}]", value)
            for index, value in enumerate(self.value)
        ]

    def text(self, pattern: re.Pattern[str] | None = None, rule: str = "") -> str:
        """Text; with a pattern, all of it must match, or `rule` is what the error says."""
        if not isinstance(self.value, str):
            raise self._wrong("text")
        if pattern is not None and not pattern.fullmatch(self.value):
            raise self.error(rule)
        return self.value

    def parsed(self, parse: Callable[[str], str]) -> str:
        """Text that a parser accepts; its ValueError becomes the field's error."""
        try:
            return parse(self.text())
        except ValueError as error:
            raise self.error(str(error)) from None

    def integer(self, least: int, most: int) -> int:
        """A whole number within bounds; true and false are not numbers."""
        if type(self.value) is not int:
            raise self._wrong("a whole number")
        if not least <= self.value <= most:
            raise self.error(f"must be {least} to {most}")
        return self.value

    def hexadecimal(self, size: int) -> str:
        """Lowercase hexadecimal of exactly so many bytes."""
        text = self.text()
        if len(text) != 2 * size or not all(c in "0123456789abcdef" for c in text):
            raise self.error(f"must be {2 * size} lowercase hexadecimal digits")
        return text

    def _under(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _wrong(self, wanted: str) -> ReleaseFieldError:
        return self.error(f"must be {wanted}, not {_KINDS.get(type(self.value), 'that')}")
