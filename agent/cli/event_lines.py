"""Events for a person: a table of those that are there, a line each of those that come."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from agent.cli.text import ago, moment, safe

if TYPE_CHECKING:
    from agent.cli.tables import Table

SHORT_ID = 8  # of an update's 16 characters; an enclave has no more
_WIDTHS = (6, 20, 10)
HEADER = "  ".join((f"{'SEQ':<6}", f"{'TIME':<20}", f"{'KIND':<10}", "DEPLOYMENT  ABOUT  WHAT"))


def events_table(events: list[dict[str, Any]]) -> Table:
    """A line an event; only what it says may take more, on a terminal."""
    from agent.cli.screen import table
    from agent.cli.tables import Column, prose

    rows = table(
        Column("SEQ"),
        Column("TIME", 5),
        Column("AGO", 2),
        Column("KIND", 3),
        Column("DEPLOYMENT"),
        Column("ABOUT", 6),
        prose("WHAT"),
    )
    for event in events:
        rows.add_row(
            str(event["sequence"]),
            _time(event),
            _ago(event),
            safe(str(event["kind"])),
            safe(str(event.get("deployment") or "-")),
            (_about(event, None) or "-", _about(event, SHORT_ID) or "-"),
            _what(event),
        )
    return rows


def line_of(event: dict[str, Any]) -> str:
    """One line, whose columns begin where those of the lines before did, as far as they fit."""
    sequence, time, kind = _WIDTHS
    words = [
        f"{event['sequence']:<{sequence}}",
        f"{_time(event):<{time}}",
        f"{safe(str(event['kind'])):<{kind}}",
        safe(str(event.get("deployment") or "-")),
        _about(event, SHORT_ID) or "-",
        _what(event),
    ]
    return "  ".join(words).rstrip()


def _at(event: dict[str, Any]) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(str(event["at"]))
    except ValueError:
        return None


def _time(event: dict[str, Any]) -> str:
    at = _at(event)
    return safe(str(event["at"])) if at is None else moment(at)


def _ago(event: dict[str, Any]) -> str:
    at = _at(event)
    return "-" if at is None else ago(at)


def _about(event: dict[str, Any], length: int | None) -> str:
    """The ids; a BDF always whole."""
    ids = [str(event[key])[:length] for key in ("enclave", "update") if event.get(key)]
    return safe(" ".join([*ids, *([str(event["gpu"])] if event.get("gpu") else [])]))


def _what(event: dict[str, Any]) -> str:
    change = " -> ".join(str(event[key]) for key in ("from", "to") if event.get(key))
    reason = str(event["reason"]) if event.get("reason") else ""
    actor = str(event.get("actor") or "agent")
    by = "" if actor == "agent" else f"  by {actor}"
    return safe(": ".join(filter(None, (change, reason))) + by)
