"""What a person should know of how what serves is, and has been. Pure."""

from __future__ import annotations

from agent.model.enclave import Enclave
from agent.model.revision import Fault, Wish
from agent.updates.planner.alarm import Alarm
from agent.updates.planner.health_history import (
    FLAPS_FROM,
    TOLD_FOR_S,
    recent_falls,
    recent_relaunches,
    record_of,
)
from agent.updates.planner.reach import told, unreached
from agent.updates.planner.types import Situation
from agent.updates.planner.unhealthy_relaunch import due_at

_WINDOW = f"{TOLD_FOR_S / 60:.0f} min"


def health_alarms(s: Situation) -> dict[str, Alarm]:
    """All that hold now, by a key of their own; nothing of what is not to run."""
    if s.deployment.wish is not Wish.RUN:
        return {}
    routed = s.enclaves.get(s.deployment.route.enclave) if s.deployment.route.enclave else None
    active = [row for row in s.enclaves.values() if row.slot is s.deployment.active_slot]
    found = {
        "unhealthy": _unhealthy(s, routed) if routed is not None else None,
        "unreached": _unreached(s, routed) if routed is not None else None,
        "flapping": _flapping(s, active[0]) if active else None,
        "relaunched": _relaunched(s, active[0]) if active else None,
    }
    return {key: alarm for key, alarm in found.items() if alarm is not None}


def _unhealthy(s: Situation, row: Enclave) -> Alarm | None:
    """Clients are sent to it, and it is not well. After a restart of the agent nobody knows: what
    was recorded stands.
    """
    record, healthy = record_of(s, row), s.healthy(row.id)
    if not s.is_up(row) or healthy or (healthy is None and record.unhealthy_since is None):
        return None
    health, name = s.health_of(row.id), s.deployment.name
    fault = (health.fault if health and healthy is False else None) or s.deployment.degraded
    since = record.unhealthy_since
    return Alarm(
        code="unhealthy",
        severity="error",
        detail=f"{name}: clients are sent to enclave {row.id}, which is not healthy: "
        f"{_said(fault)}",
        mend=_what_to_do(s, row),
        since=since,
    )


def _unreached(s: Situation, row: Enclave) -> Alarm | None:
    """It is well, as far as this host sees it, and clients do not get there."""
    cut, name = unreached(s, row), s.deployment.name
    if not cut or s.healthy(row.id) is False:
        return None
    since = [one.since for one in cut if one.since is not None]
    if all(one.by_outside for one in cut):
        mend = (
            "look for another program's packet filter (`enclave-agent doctor`, the problem "
            "forward_dropped) or server at that port; if only the agent is kept out (its link "
            "enc-out-…, by which it asks as a client), let it in, or set probes.outside: never"
        )
    else:
        mend = f"see `enclave-agent logs {name}` and the agent's log; the host itself asked"
    return Alarm(
        code="unreachable",
        severity="error",
        detail=f"{name}: {told(cut)}",
        mend=mend,
        since=min(since, key=lambda at: at.boottime_s, default=None),
    )


def _said(fault: Fault | None) -> str:
    if fault is None:
        return "its probes fail"
    probe = f"probe {fault.probe}: " if fault.probe else ""
    return f"{probe}{fault.detail}"


def _what_to_do(s: Situation, row: Enclave) -> str:
    name = s.deployment.name
    by_hand = (
        f"see `enclave-agent logs {name}`; `enclave-agent relaunch {name}` starts it anew, "
        f"`enclave-agent rollback {name}` goes back"
    )
    if s.policy.relaunch_unhealthy_after_s is None:
        return f"{by_hand}; with relaunch_unhealthy_after_s the agent does the former by itself"
    due = due_at(s, row)
    if due is None:
        return f"{by_hand}; as things are, it is not launched again by itself"
    return f"if it stays so, it is launched again at {due.shown(s.now):%H:%M:%S} UTC; or {by_hand}"


def _flapping(s: Situation, row: Enclave) -> Alarm | None:
    falls, name = recent_falls(s, row), s.deployment.name
    if len(falls) < FLAPS_FROM:
        return None
    return Alarm(
        code="flapping",
        severity="warning",
        detail=f"{name} became unhealthy {len(falls)} times within {_WINDOW}, and healthy again "
        "in between",
        mend=f"`enclave-agent events` has what failed each time; see `enclave-agent logs {name}`",
        since=falls[FLAPS_FROM - 1],
    )


def _relaunched(s: Situation, row: Enclave) -> Alarm | None:
    recent, name = recent_relaunches(s, row), s.deployment.name
    if not recent:
        return None
    times = "once" if len(recent) == 1 else f"{len(recent)} times"
    return Alarm(
        code="relaunched_unhealthy",
        severity="warning",
        detail=f"{name} was ended and launched again {times} within {_WINDOW} because it stayed "
        f"unhealthy for {s.policy.relaunch_unhealthy_after_s or 0:g} s",
        mend=f"`enclave-agent events` has why; mend the cause, or roll {name} back: each further "
        "relaunch waits twice as long",
        since=recent[0],
    )
