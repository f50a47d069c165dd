"""Rows as bytes: the JSON of a strict struct. What cannot be read back whole is damage."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import msgspec

from agent.store.port import StoreDamagedError

R = TypeVar("R", bound=msgspec.Struct)

_encode = msgspec.json.Encoder().encode


def encode(row: msgspec.Struct) -> bytes:
    """The bytes of a row."""
    return _encode(row)


def decode(body: bytes, kind: type[R]) -> R:
    """The row of these bytes. Raises StoreDamagedError if they are not one."""
    try:
        row: R = _decoder(kind).decode(body)
    except msgspec.DecodeError as error:
        raise StoreDamagedError(f"the store holds a damaged {kind.__name__.lower()}") from error
    return row


@cache
def _decoder(kind: type[R]) -> msgspec.json.Decoder[R]:
    return msgspec.json.Decoder(kind)
