"""`/openapi.json`: the table of routes and the wire's structs, told as OpenAPI 3.1."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from agent.api.reply import PROBLEM
from agent.api.roles import Permission
from agent.api.route import DocumentedAnswer, HttpRoute, Query
from agent.api.routes import ROUTES
from agent.wire.answers import ProblemDetails
from agent.wire.text import BDF_PATTERN, DEPLOYMENT_PATTERN

_TEMPLATE = "#/components/schemas/{name}"
_PARAMETERS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "pattern": DEPLOYMENT_PATTERN, "maxLength": 63},
    "bdf": {"type": "string", "pattern": BDF_PATTERN},
    "id": {"type": "string", "pattern": "^[a-z2-7]{8,16}$"},
}
_DESCRIPTION = (
    "The local API of an enclave agent. Changing requests take an Idempotency-Key. Errors are "
    "problem details (RFC 9457) with a stable code."
)


@cache
def document_bytes() -> bytes:
    """Encoded once: it depends on nothing but the code."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """The whole description."""
    kinds = _kinds()
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_TEMPLATE)
    by_kind = list(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "enclave-agent", "version": "1", "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components},
    }


def _kinds() -> list[Any]:
    kinds: list[Any] = [ProblemDetails]
    for route in ROUTES:
        kinds.extend(answer.kind for answer in route.answers if answer.kind is not None)
        if route.body is not None:
            kinds.append(route.body)
    return kinds


def _schema(kind: Any, by_kind: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    return next(schema for known, schema in by_kind if known is kind or known == kind)


def _operation(route: HttpRoute, by_kind: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "x-permission": str(route.permission),
        "parameters": [_path_parameter(name) for name in route.parameters]
        + [_query_parameter(query) for query in route.query]
        + ([_IDEMPOTENCY] if route.changes else [])
        + ([_EPOCH] if _takes_epoch(route) else []),
        "responses": _responses(route, by_kind),
    }
    if route.body is not None:
        schema = _schema(route.body, by_kind)
        if route.body_needs:
            needs = [_either(names, without) for names, without in route.body_needs]
            schema = {"allOf": [schema, {"anyOf": needs}]}
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _takes_epoch(route: HttpRoute) -> bool:
    """Whether a coordinator may change something with it."""
    return route.changes and route.permission is Permission.CHANGE


def _either(names: tuple[str, ...], without: tuple[str, ...]) -> dict[str, Any]:
    """One of the forms of a body: what it has, and what does not go with that."""
    barred = [{"required": [name]} for name in without]
    return {"required": list(names), "not": {"anyOf": barred}}


_SENT_EVENT = {
    "type": "object",
    "description": "One server-sent event: `data` is an event, or {oldest} of event `pruned`.",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["message", "pruned"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["data"],
}

_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body give the same answer, for 7 days.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
}

_EPOCH = {
    "name": "Coordinator-Epoch",
    "in": "header",
    "required": False,
    "description": "The coordinator's epoch: must be said over TLS. Lower than the highest seen "
    "is refused (409 stale_epoch), and so is a leap of more than 64 generations of 2^36 above it "
    "(409 epoch_leap). Not looked at on the unix socket.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,15}$"},
}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]}


def _query_parameter(query: Query) -> dict[str, Any]:
    return {
        "name": query.name,
        "in": "query",
        "required": query.required,
        "description": query.description,
        "schema": dict(query.schema),
    }


def _responses(route: HttpRoute, by_kind: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    found = {str(answer.status): _answer(answer, by_kind) for answer in route.answers}
    for status in _problem_statuses(route):
        found.setdefault(str(status), _problem(status, by_kind))
    return dict(sorted(found.items()))


def _problem_statuses(route: HttpRoute) -> set[int]:
    """Those of the pipeline, besides those of the route's own."""
    statuses = {400, 403, 405, 500, *route.problems}
    if route.permission is Permission.STATUS:
        statuses -= {403}
    if route.method != "GET":
        statuses |= {408, 413, 415}
    if route.changes:
        statuses |= {422, 503}
    if _takes_epoch(route):
        statuses |= {409}
    return statuses


def _answer(answer: DocumentedAnswer, by_kind: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    told: dict[str, Any] = {"description": answer.description}
    if answer.media:
        schema = {"type": "string"} if answer.kind is None else _schema(answer.kind, by_kind)
        told["content"] = {answer.media: {"schema": schema}}
        for media in answer.also:
            told["content"][media] = {"schema": _SENT_EVENT}
    return told


def _problem(status: int, by_kind: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM: {"schema": _schema(ProblemDetails, by_kind)}},
    }
    if status == 503:
        told["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return told
