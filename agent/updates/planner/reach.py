"""Whether clients reach what is routed, and what follows of it. Pure.

What stands between clients and a listener is mostly the host's: another program's packet filter,
say. So it is never an enclave's sickness by itself: it makes a deployment degraded and is told, an
update that ends so says so, and nothing is ended or launched again for it. One thing is held
against a new version: that clients do not reach it by a listener by which they reached the old
one until the switch, while nothing else on this host is known to be cut off.
"""

from __future__ import annotations

import msgspec

from agent.model.enclave import Enclave
from agent.model.revision import Fault, Wish
from agent.model.update import Update
from agent.probes.port import ListenerReach
from agent.updates.planner.types import Plan, Situation, rest

UNREACHABLE = "unreachable_by_clients"


def unreached(s: Situation, row: Enclave) -> tuple[ListenerReach, ...]:
    """Listeners by which clients do not reach this enclave, to which they are sent."""
    if s.outside is None or s.deployment.route.enclave != row.id or not s.route_applied:
        return ()
    return s.outside.unreached


def reached(s: Situation, row: Enclave) -> bool | None:
    """Whether clients reach it by all listeners; None: they are not sent to it, or not known."""
    if s.outside is None or s.deployment.route.enclave != row.id or not s.route_applied:
        return None
    found = [one.reached for one in s.outside.listeners]
    return False if False in found else None if None in found or not found else True


def reach_fault(s: Situation, row: Enclave) -> Fault | None:
    """That clients do not reach it, as what is wrong with it."""
    cut = unreached(s, row)
    if not cut:
        return None
    return Fault(code=UNREACHABLE, detail=told(cut), probe=f"outside {cut[0].listen}")


def told(cut: tuple[ListenerReach, ...]) -> str:
    """Which, and what happens to clients there."""
    each = "; ".join(f"{one.listen}: {one.problem}" for one in cut)
    return f"clients do not reach {each}"


def stays_unreached(s: Situation, recorded: Fault) -> bool:
    """Whether it was recorded that clients do not reach it, and is not known to be over."""
    return recorded.code == UNREACHABLE and s.outside is not None and s.outside.doubtful


def blame(s: Situation, update: Update) -> Fault | None:
    """What is held against a new version while the old one is warm; None: nothing is.

    Of one that is dead or sick itself, clients are cut off as well: that is told instead, by those
    who judge it.
    """
    row = s.enclaves.get(update.enclave)
    if row is None or s.outside is None or s.outside.host_suspect or not _well(s, row):
        return None
    lost = tuple(one for one in unreached(s, row) if one.listen in s.outside.reached_before)
    if not lost:
        return None
    detail = f"{told(lost)}, by which they reached the version before"
    return Fault(code=UNREACHABLE, detail=detail, probe=f"outside {lost[0].listen}")


def _well(s: Situation, row: Enclave) -> bool:
    """Whether it runs, and the newest answer to each of its own probes was good."""
    health = s.health_of(row.id)
    if health is None or not health.healthy or not s.is_up(row):
        return False
    return not health.falters


def wait_to_know(s: Situation, update: Update) -> Plan | None:
    """The wait until it is known whether clients reach it, before an update is called over.

    None: it is known, or will not be soon.
    """
    if s.outside is None or not s.outside.doubtful or update.switched_at is None:
        return None
    until = update.switched_at.plus(s.policy.outside_patience_s)
    return None if s.now.reached(until) else rest(until)


def with_warnings(s: Situation, update: Update) -> Update:
    """An update that is over says what its clients meet with."""
    row = s.enclaves.get(update.enclave)
    cut = unreached(s, row) if row is not None else ()
    if not cut or s.deployment.wish is not Wish.RUN:
        return update
    return msgspec.structs.replace(update, warnings=(*update.warnings, told(cut)))
