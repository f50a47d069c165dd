"""Why a deployment that should serve is degraded: one sentence, the probe's where one fails.

What is seen now comes first. While nothing is seen (its VM is being launched again, the agent
began anew) the recorded reason stands, which is written with an event when it is first seen and
cleared with one when the enclave is known to be well again. Pure.
"""

from __future__ import annotations

import msgspec

from agent.enclaves.port import VmPhase
from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.model.health_record import HealthRecord
from agent.model.revision import Fault
from agent.updates.planner.attestation import admitted, loss
from agent.updates.planner.before_switch import vm_fault
from agent.updates.planner.health_history import (
    record_of,
    says_the_same,
    with_fall,
    with_health,
)
from agent.updates.planner.reach import reach_fault, stays_unreached
from agent.updates.planner.types import Plan, Situation, Write

_AGAIN = "it is launched again"


def why(s: Situation, row: Enclave) -> Fault:
    """Of a deployment that is degraded; `row` is its active enclave."""
    seen, recorded = _seen(s, row), s.deployment.degraded
    if seen is not None:
        return seen
    if s.is_up(row):
        if s.deployment.route.enclave == row.id and s.route_applied and recorded is not None:
            return _coming(recorded, "whether it is well again is not known yet")
        if s.deployment.route.enclave == row.id:
            detail = "its traffic is not sent as it was decided yet"
            return Fault(code="traffic_unavailable", detail=detail)
        return _coming(recorded, "it is up again, and not known to be healthy yet")
    return _coming(recorded, _AGAIN)


def note(s: Situation, row: Enclave) -> Plan | None:
    """Record that the enclave that serves is not well, or is again; None if that is no news."""
    before, now = s.deployment.degraded, _seen(s, row)
    if now is None and not (s.healthy(row.id) and admitted(s, row)):
        return None  # nothing is known yet
    if now is None and before is not None and stays_unreached(s, before):
        return _recorded(s, with_health(s, row, record_of(s, row)))
    record = with_health(s, row, record_of(s, row))
    if _key(before) == _key(now):
        return _recorded(s, record)
    if before is None and now is not None:
        record = with_fall(s, record)
    event = EventDraft(
        kind="health",
        deployment=row.deployment,
        enclave=row.id,
        from_="degraded" if before else "healthy",
        to="degraded" if now else "healthy",
        reason=f"{now.code}: {now.detail}" if now else None,
    )
    after = msgspec.structs.replace(s.deployment, degraded=now, health=record)
    return Plan(write=Write(deployment=after, events=(event,)))


def note_health(s: Situation, row: Enclave) -> Plan | None:
    """The same of one that is to serve again and does not yet: since when it is unhealthy."""
    return _recorded(s, with_health(s, row, record_of(s, row)))


def _recorded(s: Situation, record: HealthRecord) -> Plan | None:
    if says_the_same(record, s.deployment.health):
        return None
    after = msgspec.structs.replace(s.deployment, health=record)
    return Plan(write=Write(deployment=after))


def _seen(s: Situation, row: Enclave) -> Fault | None:
    """What is wrong with it at this moment; None: nothing, or nothing is known."""
    if s.vm(row.id).phase in (VmPhase.EXITED, VmPhase.STUCK):
        return vm_fault(s, row)
    health = s.health_of(row.id)
    if s.is_up(row) and health is not None and health.healthy is False:
        return health.fault or Fault(code="unhealthy", detail="its probes fail")
    return loss(s, row) or reach_fault(s, row)


def _coming(recorded: Fault | None, how: str) -> Fault:
    if recorded is None:
        return Fault(code="not_serving", detail=how)
    return msgspec.structs.replace(recorded, detail=f"{recorded.detail}; {how}")


def _key(fault: Fault | None) -> tuple[str, str | None] | None:
    return None if fault is None else (fault.code, fault.probe)
