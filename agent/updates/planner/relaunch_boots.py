"""The boots of relaunches: one that is over its time, and one that its VM ended in. Pure.

No update looks after these. Each is held once against those GPUs whose doing it may be.
"""

from __future__ import annotations

import msgspec

from agent.model.enclave import Enclave
from agent.updates.planner.before_switch import gpus_attested, vm_fault
from agent.updates.planner.boot_deadline import MOST_TIMES, boot_deadline_s, declared_by, extended
from agent.updates.planner.launch_blame import suspects
from agent.updates.planner.transitions import enclave_event
from agent.updates.planner.types import Plan, Situation, Write


def stays_in_boot(s: Situation, row: Enclave) -> bool:
    """Whether a relaunch is over its time, and its guest is known not to have booted.

    Not of a guest that only was not asked yet, since the agent began anew.
    """
    health, limit_s = s.health_of(row.id), _boot_limit_s(s, row)
    if health is None or health.boot_complete or health.healthy is not False:
        return False
    if row.launched_at is None or limit_s is None or not s.is_up(row):
        return False
    final = s.policy.boot_deadline_s is not None
    latest = row.launched_at.plus(limit_s if final else MOST_TIMES * limit_s)
    return s.now.reached(extended(row.launched_at.plus(limit_s), latest, health))


def _boot_limit_s(s: Situation, row: Enclave) -> float | None:
    revision = s.revisions.get(row.revision)
    if revision is None:
        return None
    declared = declared_by(revision, s.policy.pull_allowance_s)
    return s.policy.boot_deadline_s or boot_deadline_s(revision.demand, declared=declared)


def give_up_boot(s: Situation, row: Enclave) -> Plan:
    """It counts as a launch that did not come up, whose VM is to be stopped."""
    ended = msgspec.structs.replace(row, launched_at=None)
    event = enclave_event(ended, row.lifecycle, "it did not boot in time")
    blamed = () if gpus_attested(s, row.id) else (*row.gpus, *row.switches)
    return Plan(write=Write(put_enclaves=(ended,), events=(event,), failed_on=blamed))


def end_in_boot(s: Situation, row: Enclave) -> Plan:
    """Told its GPUs while it is known how it ended: of a VM that was cleaned away nothing is."""
    blamed = () if gpus_attested(s, row.id) else suspects(vm_fault(s, row), row)
    ended = msgspec.structs.replace(row, boot_ended=True)
    return Plan(write=Write(put_enclaves=(ended,), failed_on=blamed))


def died_in_boot(s: Situation, row: Enclave) -> bool:
    """Whether it ended before its boot was over, as far as is known.

    After a restart of the agent nothing is known of its boot: then its age decides.
    """
    age_s = s.now.since(row.launched_at) if row.launched_at else None
    health, limit_s = s.health_of(row.id), _boot_limit_s(s, row)
    if age_s is None or limit_s is None or (health is not None and health.boot_complete):
        return False
    return age_s < limit_s
