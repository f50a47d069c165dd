"""What a look changes for good: rows to keep, rows to forget, events to tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from agent.inventory.identity import Recall, recall
from agent.inventory.nvml.values import NvmlLook
from agent.model.clock import Instant
from agent.model.event import EventDraft
from agent.model.gpu import (
    Gpu,
    GpuHealth,
    GpuState,
    HealthAction,
    KnownGpu,
    Quarantine,
    Severity,
)
from agent.model.ids import Bdf
from agent.model.pci import PciFunction

_PRESENT = "present"
_TOLD = frozenset({GpuState.UNHEALTHY, GpuState.QUARANTINED})


@dataclass(frozen=True, slots=True)
class HostLook:
    """What was seen of the machine and concluded of its health, at one moment."""

    functions: Mapping[Bdf, PciFunction]
    nvml: NvmlLook
    health: Mapping[Bdf, GpuHealth]
    now: Instant


def settle(known: list[KnownGpu], look: HostLook) -> tuple[Recall, list[EventDraft]]:
    """Who is who, what is beyond repair, and which came, came back, moved or went."""
    seen = {one.bdf: one for one in look.nvml.gpus}
    found = recall(look.functions.values(), seen, known, look.now)
    for bdf, row in found.present.items():
        if row.quarantine is None and beyond_repair(look.health.get(bdf, GpuHealth())):
            _condemn(found, row, look.health[bdf], look.now)
    rows = {row.key: row for row in known}
    events = [_arrival(row, rows, found) for row in found.present.values()]
    events += [_departure(row, rows[row.key]) for row in found.absent]
    return found, [event for event in events if event is not None]


def beyond_repair(health: GpuHealth) -> bool:
    """Whether only another card helps: it must not be given out after a reboot either."""
    return health.severity is Severity.ERROR and health.action is HealthAction.RETURN


def _condemn(found: Recall, row: KnownGpu, health: GpuHealth, now: Instant) -> None:
    reason = "; ".join(reason.detail for reason in health.reasons)
    put = msgspec.structs.replace(row, quarantine=Quarantine(reason=reason, since=now))
    assert row.bdf is not None
    found.present[row.bdf] = put
    found.changed = [*(one for one in found.changed if one.key != row.key), put]


def _arrival(row: KnownGpu, known: Mapping[str, KnownGpu], found: Recall) -> EventDraft | None:
    old = known.get(row.key) or known.get(f"at:{row.location}")
    if old is None or (old.key != row.key and old.key not in found.outdated):
        return _event(row.bdf, None, _PRESENT, "seen for the first time")
    if not old.present:
        return _event(row.bdf, GpuState.ABSENT, _PRESENT, "it is back")
    if old.bdf != row.bdf and old.bdf is not None:
        return _event(row.bdf, old.bdf, row.bdf, f"{row.key} has another address")
    return None


def _departure(row: KnownGpu, old: KnownGpu) -> EventDraft | None:
    return _event(old.bdf, _PRESENT, GpuState.ABSENT, row.key) if old.present else None


def turns(before: Mapping[Bdf, GpuState], gpus: Iterable[Gpu]) -> list[EventDraft]:
    """Which became unfit for use, or fit again, of those that were there before."""
    return [
        _event(gpu.bdf, before[gpu.bdf], gpu.state, _why(gpu))
        for gpu in gpus
        if gpu.bdf in before
        and before[gpu.bdf] is not gpu.state
        and GpuState.ABSENT not in (before[gpu.bdf], gpu.state)
        and _TOLD & {before[gpu.bdf], gpu.state}
    ]


def _why(gpu: Gpu) -> str | None:
    if gpu.state is GpuState.QUARANTINED and gpu.quarantine is not None:
        return gpu.quarantine.reason
    return "; ".join(reason.detail for reason in gpu.health.reasons) or None


def _event(bdf: str | None, old: str | None, new: str | None, why: str | None) -> EventDraft:
    return EventDraft(
        kind="gpu",
        gpu=bdf,
        from_=None if old is None else str(old),
        to=None if new is None else str(new),
        reason=why,
    )
