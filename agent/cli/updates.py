"""The table of the updates that a deployment has had."""

from __future__ import annotations

from agent.cli.overview import update_forms
from agent.cli.screen import table
from agent.cli.tables import Column, Table
from agent.cli.text import ago, duration, moment, safe
from agent.wire.views import UpdateView

SHORT_ID = 8  # characters of an update's id that tell it from all others of its deployment


def updates_table(updates: list[UpdateView]) -> Table:
    """A line an update, the newest first."""
    rows = table(
        Column("UPDATE"),
        Column("WHAT"),
        Column("REV", 2),
        Column("STRATEGY", 3),
        Column("AGO", 1),
        Column("TOOK", 4),
        Column("DOWNTIME", 5),
        Column("BEGAN", 6),
        Column("BECAUSE", wide=True),
    )
    for one in updates:
        end = one.finished_at
        took = None if end is None else (end - one.created_at).total_seconds()
        down = one.downtime_s
        rows.add_row(
            (one.id, one.id[:SHORT_ID]),
            update_forms(one),
            str(one.revision),
            str(one.strategy),
            ago(one.created_at),
            "-" if took is None else duration(took),
            "-" if down is None else duration(down),
            moment(one.created_at),
            safe((one.error.detail or one.error.code) if one.error else "-"),
        )
    return rows
