"""What the coordinator knows, in SQLite: durable before anything is answered.

Whoever else opens the file (a test) reads the truth beside a coordinator that runs or was killed.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS hosts (id TEXT PRIMARY KEY, report TEXT, inventory TEXT, digest TEXT,
    reports INTEGER NOT NULL DEFAULT 0, at REAL);
CREATE TABLE IF NOT EXISTS events (host TEXT, sequence INTEGER, body TEXT,
    PRIMARY KEY (host, sequence));
CREATE TABLE IF NOT EXISTS tokens (token TEXT PRIMARY KEY, host TEXT, until REAL, spki TEXT);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
"""


class Ledger:
    """One file. `ours` false: somebody else's, only looked at."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # --- settings, which a test changes while the coordinator runs

    def setting(self, key: str, default: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else default

    def set(self, key: str, value: object) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, str(value)))

    # --- reports

    def take(self, host: str, report: dict[str, Any], at: float) -> tuple[int, bool]:
        """Keep a report; returns what is acknowledged, and whether the inventory is needed."""
        before = self.report(host)
        late = before is not None and before["sequence"] >= report["sequence"]
        inventory, digest = report.pop("inventory", None), report["inventory_digest"]
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for event in report["events"]:
                self._add_event(host, event)
            if not late:
                self._db.execute(
                    "INSERT INTO hosts (id, report, at, reports) VALUES (?, ?, ?, 1)"
                    " ON CONFLICT (id) DO UPDATE SET report = excluded.report, at = excluded.at,"
                    " reports = reports + 1",
                    (host, json.dumps(report), at),
                )
            if inventory is not None:
                self._db.execute(
                    "UPDATE hosts SET inventory = ?, digest = ? WHERE id = ?",
                    (json.dumps(inventory), digest, host),
                )
            self._db.execute("COMMIT")
        (known,) = self._db.execute("SELECT digest FROM hosts WHERE id = ?", (host,)).fetchone()
        return self.newest_event(host), known != digest

    def _add_event(self, host: str, event: dict[str, Any]) -> None:
        body = json.dumps(event, sort_keys=True)
        known = self._db.execute(
            "SELECT body FROM events WHERE host = ? AND sequence = ?", (host, event["sequence"])
        ).fetchone()
        assert known is None or known[0] == body, "an event came again as another one"
        self._db.execute(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?)", (host, event["sequence"], body)
        )

    def newest_event(self, host: str) -> int:
        row = self._db.execute("SELECT max(sequence) FROM events WHERE host = ?", (host,))
        return int(row.fetchone()[0] or 0)

    def events(self, host: str) -> list[dict[str, Any]]:
        rows = self._db.execute(
            "SELECT body FROM events WHERE host = ? ORDER BY sequence", (host,)
        )
        return [json.loads(body) for (body,) in rows]

    def report(self, host: str) -> dict[str, Any] | None:
        row = self._db.execute("SELECT report FROM hosts WHERE id = ?", (host,)).fetchone()
        return json.loads(row[0]) if row else None

    def reports(self, host: str) -> int:
        row = self._db.execute("SELECT reports FROM hosts WHERE id = ?", (host,)).fetchone()
        return int(row[0]) if row else 0

    def inventory(self, host: str) -> dict[str, Any] | None:
        row = self._db.execute("SELECT inventory FROM hosts WHERE id = ?", (host,)).fetchone()
        return json.loads(row[0]) if row and row[0] else None

    # --- enrolment

    def add_token(self, token: str, host: str, until: float) -> None:
        self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, NULL)", (token, host, until))

    def spend(self, token: str, host: str, spki: str, now: float) -> bool:
        """Once; the same key may come again with it, if its answer was lost."""
        with self._db:
            row = self._db.execute(
                "SELECT host, until, spki FROM tokens WHERE token = ?", (token,)
            ).fetchone()
            if row is None or row[0] != host or now > row[1] or row[2] not in (None, spki):
                return False
            self._db.execute("UPDATE tokens SET spki = ? WHERE token = ?", (spki, token))
            return True
