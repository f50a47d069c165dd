"""An answer before it is HTTP: status and bytes, so that it can be kept and given again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

JSON = "application/json"
PROBLEM = "application/problem+json"

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(value: object, status: int = 200) -> Reply:
    """The value as JSON."""
    return Reply(status=status, body=_encoder.encode(value))


def with_headers(reply: Reply, headers: Mapping[str, str]) -> Reply:
    """The same reply with more headers."""
    return Reply(reply.status, reply.body, reply.content_type, {**reply.headers, **headers})
