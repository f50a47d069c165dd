"""What a route is: one row of the table that serving, authorising and describing all read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from agent.api.reply import JSON, Reply
from agent.api.roles import Permission, Role
from agent.api.surface import Surface
from agent.updates.orders import Caller


@dataclass(frozen=True, slots=True)
class Call:
    """One request, after everything about it was checked that the table can say."""

    surface: Surface
    role: Role
    request: web.Request
    names: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    caller: Caller


Handler = Callable[[Call], Awaitable[Reply | web.StreamResponse]]
Matches = Callable[[str | None], bool]
Recall = Callable[[Call, Matches], Awaitable[Reply | None]]


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter after the question mark. `read` raises ValueError with the rule."""

    name: str
    read: Callable[[str], Any]
    schema: Mapping[str, Any]
    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class DocumentedAnswer:
    """One documented answer: its JSON type, or another media type."""

    status: int
    description: str
    kind: Any = None
    media: str = JSON
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One method of one path. `problems`: the statuses besides those that every such route has.

    `body_needs`: the forms of a body, each as the members that it has and those that it may not.

    `recall`: the answer of a request that was carried out by an agent that died before it could
    keep it, found by the mark that the request left on what it made; None if it was not.
    """

    method: str
    path: str
    name: str
    summary: str
    permission: Permission
    handler: Handler
    answers: tuple[DocumentedAnswer, ...]
    query: tuple[Query, ...] = ()
    body: Any = None
    body_required: bool = False
    body_needs: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    problems: tuple[int, ...] = ()
    recall: Recall | None = None

    @property
    def changes(self) -> bool:
        """Whether it changes something: waits for readiness, takes an Idempotency-Key."""
        changing = (Permission.CHANGE, Permission.HOST)
        return self.permission in changing and self.method != "GET"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names in the path."""
        parts = self.path.split("/")
        return tuple(part[1:-1] for part in parts if part.startswith("{"))
