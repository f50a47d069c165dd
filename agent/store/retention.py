"""How much of what would grow without end is kept, the same for every implementation."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from agent.model.ids import DeploymentName

if TYPE_CHECKING:
    from agent.store.port import Reader

EVENTS_KEPT = 10_000
REVISIONS_KEPT = 20  # of a deployment; all of them are read in every turn
UPDATES_KEPT = 100  # of a deployment
SAMPLES_KEPT = 200
ANSWERS_KEPT_S = 7 * 24 * 3600.0


def event_time(wall: dt.datetime) -> str:
    """RFC 3339 in UTC, to the microsecond, with a Z."""
    return wall.astimezone(dt.UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def answers_expired_before(wall: dt.datetime) -> float:
    """Answers kept before this moment, in seconds of the wall clock, have expired."""
    return wall.timestamp() - ANSWERS_KEPT_S


def superfluous_revisions(tx: Reader, name: DeploymentName, newest: int) -> list[int]:
    """The numbers of those that are too old to be kept and that nothing present refers to."""
    oldest = newest - REVISIONS_KEPT + 1
    old = [row.number for row in tx.revisions(name) if row.number < oldest]
    if not old:
        return []
    needed = {row.revision for row in tx.enclaves(name)}
    if deployment := tx.deployment(name):
        needed |= {deployment.active_revision or 0, deployment.last_revision}
    if update := tx.running_update(name):
        needed |= {update.revision, update.from_revision or 0}
    return [number for number in old if number not in needed]


def superfluous_digests(tx: Reader, name: DeploymentName) -> list[tuple[str, int]]:
    """Versions of secrets that are not current and that no revision names any more."""
    named = {(secret, version) for secret, (version, _) in tx.secret_versions(name).items()}
    named |= {one for row in tx.revisions(name) for one in row.secrets.items()}
    return [one for one in tx.secret_digests(name) if one not in named]
