"""Which GPU is which, also where NVML cannot see it. Pure.

A GPU is known by its UUID once NVML has seen it, until then by where it sits: the way to it over
the board's bridges, which stays when a reboot renumbers the buses. What NVML says now is always
believed over what is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from agent.inventory.nvml.values import NvmlGpu
from agent.model.clock import Instant
from agent.model.gpu import KnownGpu, Quarantine
from agent.model.ids import Bdf
from agent.model.pci import PciFunction, PciKind

_LEARNED = ("serial", "module_id", "name", "architecture", "memory_mib")


@dataclass(slots=True)
class Recall:
    """What is known of each function that is there, and of those that are not.

    `changed` rows are to be kept, rows of the keys in `outdated` to be removed: they were known
    by their place and have a UUID now.
    """

    present: dict[Bdf, KnownGpu] = field(default_factory=dict)
    absent: list[KnownGpu] = field(default_factory=list)
    changed: list[KnownGpu] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)


def recall(
    functions: Iterable[PciFunction],
    seen: Mapping[Bdf, NvmlGpu],
    known: Iterable[KnownGpu],
    now: Instant,
) -> Recall:
    """Tell every function that is there from every other; learn what NVML says of it."""
    rows = {row.key: row for row in known}
    found, left = Recall(), dict(rows)
    # By UUID first: a card that moved must not be taken for the one whose place it has now.
    ordered = sorted(functions, key=lambda one: one.bdf not in seen)
    for function in ordered:
        nvml = seen.get(function.bdf)
        row = _row_of(function, nvml, left)
        left.pop(row.key, None)
        nameless = left.pop(_place(function), None)
        placed = msgspec.structs.replace(
            row,
            bdf=function.bdf,
            location=function.location,
            device=function.device if function.device is not None else row.device,
            is_switch=function.kind is PciKind.SWITCH,
            present=True,
            quarantine=row.quarantine or _inherited(nameless, function),
        )
        learned = _learn(placed, nvml, now)
        gone = {row.key, nameless.key if nameless else row.key} - {learned.key}
        found.outdated.extend(sorted(key for key in gone if key in rows))
        if rows.get(learned.key) != learned:
            found.changed.append(learned)
        found.present[function.bdf] = learned
    _leave_out(found, left.values())
    return found


def _place(function: PciFunction) -> str:
    """The key of a GPU whose UUID is not known."""
    return f"at:{function.location}"


def _inherited(nameless: KnownGpu | None, function: PciFunction) -> Quarantine | None:
    """The quarantine of what was known by its place only, and now turns out to be this one."""
    if nameless is None or not _same_part(nameless, function):
        return None
    return nameless.quarantine


def _same_part(row: KnownGpu, function: PciFunction) -> bool:
    return None in (row.device, function.device) or row.device == function.device


def _row_of(function: PciFunction, nvml: NvmlGpu | None, left: Mapping[str, KnownGpu]) -> KnownGpu:
    if nvml is not None and nvml.uuid is not None and nvml.uuid in left:
        return left[nvml.uuid]
    here = [row for row in left.values() if row.location == function.location]
    for row in here:
        other_card = row.uuid is not None and nvml is not None and nvml.uuid is not None
        if _same_part(row, function) and not other_card:
            return row
    return KnownGpu(key=_place(function), bdf=function.bdf, location=function.location)


def _learn(row: KnownGpu, nvml: NvmlGpu | None, now: Instant) -> KnownGpu:
    if nvml is None or nvml.uuid is None:
        return row
    told = {name: getattr(nvml, name) for name in _LEARNED}
    news = {name: value for name, value in told.items() if value is not None}
    learned = msgspec.structs.replace(row, key=nvml.uuid, uuid=nvml.uuid, **news)
    if learned == row:
        return row
    return msgspec.structs.replace(learned, learned_at=now)


def _leave_out(found: Recall, rows: Iterable[KnownGpu]) -> None:
    """Those that are not there: each keeps its place as long as no other card has it."""
    locations = {row.location for row in found.present.values()}
    for row in rows:
        lost = msgspec.structs.replace(
            row,
            location=None if row.location in locations else row.location,
            bdf=None if row.bdf in found.present else row.bdf,
            present=False,
        )
        if lost != row:
            found.changed.append(lost)
        found.absent.append(lost)
