"""Request bodies: bounded, JSON, strict, and errors that name the field as a person would."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from aiohttp import web

from agent.api.problems import HttpError
from agent.door.body import read_bounded
from agent.wire.text import MAX_BODY_BYTES

_PLACE = re.compile(r"^(?P<text>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)
_SHOWN = 80
_READ_S = 30.0


async def read_body(request: web.Request) -> bytes:
    """The body, at most 2 MiB; anything but JSON is refused unless there is no body."""
    if request.content_length and request.content_length > MAX_BODY_BYTES:
        raise HttpError(413, "too_large", "The body is over 2 MiB.")
    try:
        data = await read_bounded(request, MAX_BODY_BYTES, _READ_S)
    except TimeoutError:
        raise HttpError(408, "too_slow", f"The body did not come in {_READ_S:g} s.") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise HttpError(400, "bad_body", "The body could not be read to its end.") from error
    if data and request.content_type != "application/json":
        raise HttpError(415, "not_json", "A body must come as Content-Type: application/json.")
    return data


def decode(data: bytes, kind: Any) -> Any:
    """The body as a value of `kind`; HttpError 400 with the field's path."""
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.ValidationError as error:
        field, text = _explain(str(error), data)
        raise HttpError(400, "bad_request", text, field=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HttpError(400, "bad_json", "The body is not JSON, or is nested too deep.") from None


def shown(text: str) -> str:
    """Somebody's text, fit for a message: escaped and short."""
    cut = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return ascii(cut) if not cut.isprintable() else f"'{cut}'"


def _explain(message: str, data: bytes) -> tuple[str | None, str]:
    """The field's path without the leading `$.`, and a sentence that begins with it."""
    match = _PLACE.match(message)
    text, path = (match["text"], match["path"]) if match else (message, "$")
    path = path.removeprefix("$").removeprefix(".")
    if path.endswith("[...]"):
        path = _find_entry(path, data, nullable="null`" in text.partition(",")[0])
    for form, wording in ((_UNKNOWN, "is not a known field"), (_MISSING, "is needed")):
        named = form.match(text)
        if named:
            name = named["name"][:_SHOWN]
            field = f"{path}.{name}" if path else name
            return field, f"{field}: {wording}"
    text = text.replace("`", "").replace("Expected", "expected", 1)
    return (path, f"{path}: {text}") if path else (None, text)


def _find_entry(path: str, data: bytes, *, nullable: bool) -> str:
    """Which entry of an object of texts is not a text: the decoder does not say it."""
    base = path.removesuffix("[...]")
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return base or path
    if base:
        found = found.get(base) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return base or path
    for name, value in found.items():
        if not isinstance(value, str) and not (nullable and value is None):
            shown_name = name[:_SHOWN]
            return f"{base}.{shown_name}" if base else shown_name
    return base or path
