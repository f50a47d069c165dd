"""What a guest says of the GPUs that it owns, which is all that is seen of them then. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from agent.model.gpu import HOST, Gpu
from agent.model.ids import EnclaveId

GuestMetrics = Callable[[EnclaveId], Mapping[str, Any] | None]

# The guest's name → ours, and the most that it can be.
_NAMES = {
    "gpu_util": ("utilization_percent", 100.0),
    "gpu_mem_util": ("memory_used_gib", 1e6),
    "gpu_mem_total": ("memory_total_gib", 1e6),
}


def with_guests(gpus: Iterable[Gpu], metrics: GuestMetrics) -> tuple[Gpu, ...]:
    """Each GPU that a guest owns, with what that guest says."""
    owners = {gpu.owner for gpu in gpus if gpu.owner is not None} - {HOST}
    said = {owner: guest_view(metrics(EnclaveId(owner))) for owner in owners}
    return tuple(
        msgspec.structs.replace(gpu, guest=said[gpu.owner]) if gpu.owner in said else gpu
        for gpu in gpus
    )


def guest_view(metrics: Mapping[str, Any] | None) -> dict[str, float] | None:
    """A guest may say anything: only numbers that can be are taken from it."""
    found = {}
    for told, (name, most) in _NAMES.items():
        value = (metrics or {}).get(told)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most:
            found[name] = float(value)
    return found or None
