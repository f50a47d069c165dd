"""The relaunch of what stays unhealthy, where it was asked for. Pure.

Decided once, by a write that also takes the traffic away; then the guest is asked to power off,
what is open to it is reset, and it is launched again, whatever crashes in between. Each further
one waits twice as long. It counts into no crash loop: the guest did not end by itself. Not done
while an update runs, where it could not be launched again (secrets that are not here, certificates
that are spent), nor because clients do not reach it: what stands between is cured by no boot.
"""

from __future__ import annotations

import msgspec

from agent.enclaves.port import VmPhase
from agent.model.clock import Instant, within
from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.model.revision import Fault, Wish
from agent.updates.planner.certificates import certificate_domain, left
from agent.updates.planner.health_history import record_of
from agent.updates.planner.stop_stages import cut, cut_events, reset_action
from agent.updates.planner.transitions import another_launch, enclave_event, routed
from agent.updates.planner.types import Action, ActionKind, Plan, Situation, Write, act

REMEMBERED_S = 6 * 3600.0  # how long one makes the next wait longer
_LONGEST_PAUSE_S = 3600.0


def due_at(s: Situation, row: Enclave) -> Instant | None:
    """When it is to be ended if it stays as it is; None: it is not unhealthy, or may not be."""
    after_s, record = s.policy.relaunch_unhealthy_after_s, record_of(s, row)
    if after_s is None or record.unhealthy_since is None or s.healthy(row.id) is not False:
        return None
    if s.update is not None or s.deployment.wish is not Wish.RUN or not s.is_up(row):
        return None
    if s.lacks(row) or _without_certificate(s, row):
        return None
    due = record.unhealthy_since.plus(after_s)
    recent = relaunches(s, row)
    if not recent:
        return due
    pause_s = min(after_s * 2 ** len(recent), max(after_s, _LONGEST_PAUSE_S))
    return max(due, recent[-1].plus(pause_s), key=lambda at: at.boottime_s)


def relaunches(s: Situation, row: Enclave) -> tuple[Instant, ...]:
    """Those of this enclave that are remembered."""
    return within(record_of(s, row).relaunched_at, REMEMBERED_S, s.now)


def _without_certificate(s: Situation, row: Enclave) -> bool:
    revision = s.revisions.get(row.revision)
    domain = certificate_domain(revision) if revision else None
    return domain is not None and left(s.certificate_boots.get(domain, ()), s.now) <= 0


def decide(s: Situation, row: Enclave) -> Plan:
    """From here on it is ended, and connections are refused until it is healthy again."""
    health, record = s.health_of(row.id), record_of(s, row)
    fault = (health and health.fault) or Fault(code="unhealthy", detail="its probes fail")
    ending = msgspec.structs.replace(
        record,
        ending=row.launch_uuid,
        relaunched_at=(*relaunches(s, row), s.now),
    )
    reason = (
        f"unhealthy for {s.policy.relaunch_unhealthy_after_s:g} s: {fault.code}: {fault.detail}"
    )
    event = EventDraft(
        kind="relaunch",
        deployment=row.deployment,
        enclave=row.id,
        from_="unhealthy",
        to="ending",
        reason=reason,
    )
    deployment, *route_event = (
        routed(s.deployment, None, "it stays unhealthy")
        if s.deployment.route.enclave == row.id
        else (s.deployment,)
    )
    deployment = msgspec.structs.replace(deployment, health=ending, degraded=fault)
    return Plan(write=Write(deployment=deployment, events=(event, *route_event)))


def is_ending(s: Situation, row: Enclave) -> bool:
    """Whether this launch of it was decided to end."""
    return record_of(s, row).ending == row.launch_uuid


def end(s: Situation, row: Enclave) -> Plan:
    """Refuse, then reset what is open and stop it beside that, then launch it again.

    What is open is not waited for: what answers no more would have its clients hang on it.
    """
    if not s.route_applied:
        return act(s.apply_route)
    if s.vm(row.id).phase is not VmPhase.ABSENT:
        stop = Action(ActionKind.STOP, enclave=row.id, grace_s=s.grace_s(row))
        return act(reset_action(row.id), stop)
    outcome = cut(s, row.id, next(reversed(record_of(s, row).relaunched_at), None))
    if outcome is None:
        return act(reset_action(row.id))
    again = another_launch(s, row)
    event = enclave_event(again, row.lifecycle, "it stayed unhealthy")
    return Plan(write=Write(put_enclaves=(again,), events=(*cut_events(row, outcome), event)))
