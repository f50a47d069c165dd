"""How long a guest may boot: by what is booted, and by how this host did it before. Pure.

A confidential guest accepts its memory page by page and its processors one by one: 8 GPUs and
800 GiB take 25 minutes to Ready, 248 vCPUs ten. What this host really needs is learned from it.
Then it pulls images, waits for its containers to be healthy, and may wait for a certificate: that
is its workload's, and is never undercut by what was learned of other workloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.model.clock import Instant
from agent.model.resources import Demand
from agent.model.revision import Revision
from agent.model.update import Booting
from agent.probes.port import HealthView

BOOTS = "boot"  # the kind of the samples
LEAST_S = 120.0
S_PER_GIB, S_PER_VCPU, S_PER_GPU = 1.0, 2.0, 90.0
PUBLIC_CERTIFICATE_S = 20 * 60.0  # at least, for a guest that asks for one: a retry fits in
PROGRESS_S = 120.0  # more, from each stage that is newly finished
MOST_TIMES = 3.0  # the deadline first computed, however much progress there is
_ENOUGH, _LOOKED_AT = 3, 20
_TIMES_SLOWEST = 3.0


@dataclass(frozen=True, slots=True)
class Declared:
    """What a boot waits for beside its size: containers and their images, a certificate."""

    wait_s: float = 0.0
    at_least_s: float = 0.0


def declared_by(revision: Revision, pull_allowance_s: float) -> Declared:
    """Of a revision, where so many seconds are allowed for its images."""
    public = revision.public_certificate
    return Declared(
        wait_s=revision.boot_wait_s + pull_allowance_s,
        at_least_s=PUBLIC_CERTIFICATE_S if public else 0.0,
    )


def shape_of(demand: Demand) -> str:
    """The key of the samples of guests of this size."""
    return f"{demand.gpus} GPUs, {demand.memory_mib} MiB, {demand.vcpus} vCPUs"


def boot_deadline_s(
    demand: Demand, boots: Sequence[float] = (), declared: Declared = Declared()
) -> float:
    """Seconds from QEMU's start to the last boot stage. `boots`: of this shape, newest first.

    Three boots are history enough: then three times the slowest, between half and twice what the
    size alone would give, and never less than what is declared.
    """
    size_s = (
        LEAST_S
        + S_PER_GIB * demand.memory_mib / 1024
        + S_PER_VCPU * demand.vcpus
        + S_PER_GPU * demand.gpus
    )
    whole_s = max(size_s + declared.wait_s, declared.at_least_s)
    recent = list(boots)[:_LOOKED_AT]
    if len(recent) < _ENOUGH:
        return whole_s
    learned_s = max(_TIMES_SLOWEST * max(recent), size_s / 2, declared.wait_s)
    return min(max(learned_s, declared.at_least_s), 2 * whole_s)


def booting(now: Instant, limit_s: float, *, final: bool) -> Booting:
    """The state of a boot that begins now. `final`: the limit is the operator's own word."""
    latest = now.plus(limit_s if final else MOST_TIMES * limit_s)
    return Booting(deadline=now.plus(limit_s), latest=latest)


def deadline_of(state: Booting, health: HealthView | None) -> Instant:
    """When the boot is over its time, after the progress that was seen of it."""
    return extended(state.deadline, state.latest or state.deadline, health)


def extended(deadline: Instant, latest: Instant, health: HealthView | None) -> Instant:
    """The deadline, or so long after the newest progress if that is later; `latest` at most."""
    if health is None or health.progressed_at is None:
        return deadline
    progressed = health.progressed_at.plus(PROGRESS_S)
    if not progressed.reached(deadline):
        return deadline
    return latest if progressed.reached(latest) else progressed
