"""What is wrong with a Sigstore bundle, and the strict reading of its JSON."""

from __future__ import annotations

from typing import TypeVar

from agent.errors import AgentError
from agent.strict_json import StrictJsonError, decode_strict_json

T = TypeVar("T")


class BundleError(AgentError):
    """A bundle that is not believed. `code` is stable; `trusted_root`: the operator's file."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self._code = code

    @property
    def code(self) -> str:
        return self._code


def read_json(data: bytes, kind: type[T], what: str, *, code: str = "bundle_malformed") -> T:
    """JSON in which no member stands twice, for two readers could see two things.

    Raises BundleError.
    """
    try:
        return decode_strict_json(data, kind)
    except StrictJsonError as error:
        raise BundleError(code, f"{what} cannot be read: {error}") from error


def first_line(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).partition("\n")[0] or type(error).__name__)[:300]
