"""How long a guest may boot: by what is booted, and by how this host did it before. Pure.

A confidential guest accepts its memory page by page and its processors one by one: 8 GPUs and
800 GiB take 25 minutes to Ready, 248 vCPUs ten. What this host really needs is learned from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.model.resources import Demand

BOOTS = "boot"  # the kind of the samples
LEAST_S = 120.0
S_PER_GIB, S_PER_VCPU, S_PER_GPU = 1.0, 2.0, 90.0
_ENOUGH, _LOOKED_AT = 3, 20
_TIMES_SLOWEST = 3.0


def shape_of(demand: Demand) -> str:
    """The key of the samples of guests of this size."""
    return f"{demand.gpus} GPUs, {demand.memory_mib} MiB, {demand.vcpus} vCPUs"


def boot_deadline_s(demand: Demand, boots: Sequence[float] = ()) -> float:
    """Seconds from QEMU's start to the last boot stage. `boots`: of this shape, newest first.

    Three boots are history enough: then three times the slowest, between half and twice what the
    size alone would give.
    """
    size_s = (
        LEAST_S
        + S_PER_GIB * demand.memory_mib / 1024
        + S_PER_VCPU * demand.vcpus
        + S_PER_GPU * demand.gpus
    )
    recent = list(boots)[:_LOOKED_AT]
    if len(recent) < _ENOUGH:
        return size_s
    return min(max(_TIMES_SLOWEST * max(recent), size_s / 2), size_s * 2)
