"""Somebody with the store's file in his hands: `events --verify` finds what he did."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.conftest import running
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of

pytestmark = [pytest.mark.slow]

Rows = dict[int, bytes]


def edited(rows: Rows) -> None:
    event = json.loads(rows[4]) | {"actor": "nobody"}
    rows[4] = json.dumps(event).encode()


def removed(rows: Rows) -> None:
    del rows[4]


def reordered(rows: Rows) -> None:
    rows[4], rows[5] = rows[5], rows[4]


def reordered_and_renumbered(rows: Rows) -> None:
    one, other = json.loads(rows[4]), json.loads(rows[5])
    rows[4] = json.dumps(other | {"sequence": 4}).encode()
    rows[5] = json.dumps(one | {"sequence": 5}).encode()


def cut_out_as_if_restored(rows: Rows) -> None:
    """A gap may stand before a restore only, and that is chained to what was before the gap."""
    rows[5] = json.dumps(json.loads(rows[5]) | {"kind": "store_restored"}).encode()
    del rows[4]


TAMPERED: dict[str, tuple[Callable[[Rows], None], str]] = {
    "edited": (edited, "event 4 is not what was recorded"),
    "removed": (removed, "the chain is broken before event 5"),
    "reordered": (reordered, "the chain is broken before event 5"),
    "reordered and renumbered": (reordered_and_renumbered, "event 4 is not what was recorded"),
    "cut out as if restored": (cut_out_as_if_restored, "event 5 is not what was recorded"),
}


def rewrite(file: Path, change: Callable[[Rows], None]) -> Rows:
    """Change the events by hand, beside the agent; returns them as they were."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows: Rows = dict(connection.execute("SELECT sequence, body FROM events"))
        before = dict(rows)
        change(rows)
        put(connection, rows)
    return before


def put(connection: sqlite3.Connection, rows: Rows) -> None:
    with connection:
        connection.execute("DELETE FROM events")
        connection.executemany("INSERT INTO events VALUES (?, ?)", rows.items())


async def test_what_was_done_to_the_events_is_found_and_named(tmp_path: Path) -> None:
    source = fake_releases(tmp_path, {"v1": config_of()})
    async with running(source, settings=settings(install(tmp_path))) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        await daemon.over()
        file = daemon.state / "agent.db"
        for name, (change, told) in TAMPERED.items():
            before = rewrite(file, change)
            code, _, said = await daemon.cli("events", "--verify")
            assert (code, told in said) == (1, True), (name, said)
            print(f"{name}: {said.strip().splitlines()[-1]}")
            with contextlib.closing(sqlite3.connect(file)) as connection:
                put(connection, before)
        code, _, said = await daemon.cli("events", "--verify")
        assert (code, said.startswith("the chain holds from event 1 to ")) == (0, True), said
