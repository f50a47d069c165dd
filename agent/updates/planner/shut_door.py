"""A guest that is up and lets nobody in: its boot failed. Pure.

A guest whose early boot fails ends its server and stays as it is: its VM runs, its port refuses,
and the stage that failed is hardly ever told. So a port that has kept everybody out without a
break for long enough ends the update of a guest that has not taken traffic yet. It need not have
answered before: a guest's server listens before the guest has an address, so one that refuses has
lost its server, and a failure soon after the network came up leaves no time for an answer. A
guest that is silent has not come up yet. Restarts of its server are shorter, but for the stage in
which containers are started.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.resources import Demand
from agent.model.revision import Fault
from agent.model.update import Booting
from agent.probes.port import HealthView
from agent.probes.stages import CONTAINERS, GPU_ATTESTATION
from agent.updates.planner.boot_deadline import S_PER_GIB, S_PER_GPU, S_PER_VCPU
from agent.updates.planner.types import Situation

ANSWERS = "first_answer"  # the kind of the samples: seconds from the launch to the first answer
SHUT = "guest_shut_its_door"
SHUT_FOR_S = 30.0
_QUICK_S = 10.0  # to the first answer of a guest without any size
_SLOWEST = 10.0


def slowness(demand: Demand, answers: Sequence[float]) -> float:
    """How many times slower than a quick host this one brings guests of this size up; 1 to 10.

    By the time to their first answers, in which no workload has a part yet.
    """
    sized_s = S_PER_GIB * demand.memory_mib / 1024 + S_PER_VCPU * demand.vcpus
    quick_s = _QUICK_S + sized_s + S_PER_GPU * demand.gpus
    return min(max(median(answers) / quick_s, 1.0), _SLOWEST) if answers else 1.0


def shut_until(s: Situation, row: Enclave, booting: Booting | None) -> Instant | None:
    """When a door that is shut now will have been shut for too long; None if it is not.

    `booting`: None of a guest whose boot is over.
    """
    health = s.health_of(row.id)
    if health is None or health.shut_since is None or not s.is_up(row):
        return None
    if _stage(health, booting) == CONTAINERS:
        return None
    revision = s.revisions[row.revision]
    own = booting.answered_after_s if booting else None
    answers = (*s.answers, *((own,) if own is not None else ()))
    return health.shut_since.plus(SHUT_FOR_S * slowness(revision.demand, answers))


def shut_fault(s: Situation, row: Enclave, booting: Booting | None) -> Fault | None:
    """That it shut its door, once that is sure."""
    until, health = shut_until(s, row, booting), s.health_of(row.id)
    if until is None or health is None or not s.now.reached(until):
        return None
    after, at = health.stage_before, _stage(health, booting)
    where = f" after stage {after}" if after else ""
    doing = f", with stage {at} under way" if at else ""
    answered = health.answered or booting is None or booting.answered_after_s is not None
    said = "it answered, and has refused ever since"
    if not answered:
        said = "it is on the network, and has refused without ever answering"
    detail = f"the guest shut its door{where}{doing}: {said}"
    return Fault(code=SHUT, detail=detail)


def shut_over_gpus(health: HealthView | None, booting: Booting) -> bool:
    """Whether the stage that it did not come out of is the one that judges its GPUs."""
    return health is not None and _stage(health, booting) == GPU_ATTESTATION


def _stage(health: HealthView, booting: Booting | None) -> str | None:
    """The one under way when it was last seen; as recorded where only an agent before saw it."""
    if health.boot_stages is not None:
        return health.stage
    return booting.reached if booting else None
