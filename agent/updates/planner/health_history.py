"""What is recorded of an enclave's health: since when it is bad, how often it fell. Pure.

The record is of one enclave, and what it says of being unhealthy of one launch of it: with another
one it is read as empty, so that nobody need clear it.
"""

from __future__ import annotations

import msgspec

from agent.model.clock import Instant, within
from agent.model.enclave import Enclave
from agent.model.health_record import HealthRecord
from agent.updates.planner.types import Situation

FLAPS_FROM = 3  # falls within the window, from which on it is a problem
TOLD_FOR_S = 1800.0  # the window: of falls, and of relaunches of what stayed unhealthy
_KEPT_FALLS = 20


def record_of(s: Situation, row: Enclave) -> HealthRecord:
    """As far as it is about this enclave, and this launch of it."""
    record = s.deployment.health
    if record.enclave != row.id:
        return HealthRecord(enclave=row.id, launch_uuid=row.launch_uuid, falls=record.falls)
    if record.launch_uuid == row.launch_uuid:
        return record
    return msgspec.structs.replace(
        record, launch_uuid=row.launch_uuid, unhealthy_since=None, ending=None
    )


def with_health(s: Situation, row: Enclave, record: HealthRecord) -> HealthRecord:
    """With since when it is unhealthy; of a guest that boots nothing is held against it.

    One that was sent traffic had booted, although an agent that began anew has not heard so.
    """
    health = s.health_of(row.id)
    if health is None or health.healthy is None:
        return record
    if health.healthy:
        return msgspec.structs.replace(record, unhealthy_since=None)
    booted = health.boot_complete or s.deployment.route.enclave == row.id
    if not booted or record.unhealthy_since is not None:
        return record
    return msgspec.structs.replace(record, unhealthy_since=s.now)


def with_fall(s: Situation, record: HealthRecord) -> HealthRecord:
    """What served well is not well any more."""
    fell_at = (*record.fell_at, s.now)[-_KEPT_FALLS:]
    return msgspec.structs.replace(record, falls=record.falls + 1, fell_at=fell_at)


def says_the_same(one: HealthRecord, other: HealthRecord) -> bool:
    """Whether nothing is to be written: whom an empty record is about is no news."""
    return _content(one) == _content(other)


def _content(record: HealthRecord) -> tuple[object, ...]:
    return (record.unhealthy_since, record.falls, record.fell_at, record.relaunched_at)


def recent_falls(s: Situation, row: Enclave) -> tuple[Instant, ...]:
    """Those that a person is told of."""
    return within(record_of(s, row).fell_at, TOLD_FOR_S, s.now)


def recent_relaunches(s: Situation, row: Enclave) -> tuple[Instant, ...]:
    """Those of what stayed unhealthy that a person is told of."""
    return within(record_of(s, row).relaunched_at, TOLD_FOR_S, s.now)


def told_until(s: Situation, row: Enclave) -> Instant | None:
    """When there will be less to tell of the past; None: there is nothing now."""
    falls, relaunched = recent_falls(s, row), recent_relaunches(s, row)
    flapping = [falls[-FLAPS_FROM]] if len(falls) >= FLAPS_FROM else []
    ends = [at.plus(TOLD_FOR_S) for at in (*flapping, *relaunched[-1:])]
    return min(ends, key=lambda at: at.boottime_s, default=None)
