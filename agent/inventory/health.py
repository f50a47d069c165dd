"""The health of a GPU over time: findings believed, kept and let go with hysteresis. Pure.

    look shows it (`looks` times in a row) ──► believed ──(3 looks in a row without it)──► gone
    event or grown counter ──► kept: to be watched, for an hour; to be reset, until a reset

What only a reset, a reboot or another card can mend stays until that has happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.inventory.finding import Finding
from agent.inventory.findings import Sighting, corrected_errors, find, grown
from agent.model.clock import Instant
from agent.model.gpu import GpuHealth, GpuReason, HealthAction, Severity, Sight
from agent.model.pci import Aer

_CLEAR_AFTER = 3
_WATCHED_S = 3600.0
_SEVERITIES, _ACTIONS = list(Severity), list(HealthAction)


@dataclass(frozen=True, slots=True)
class Level:
    """A finding that looks show, or have shown."""

    finding: Finding
    since: Instant
    seen: int = 1
    missed: int = 0
    believed: bool = False


@dataclass(frozen=True, slots=True)
class FindingMark:
    """A finding of one moment. `last`: when it came last."""

    finding: Finding
    since: Instant
    last: Instant
    count: int = 1


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """What is known of one GPU's health. Begin with an empty one."""

    levels: Mapping[str, Level] = field(default_factory=dict)
    marks: Mapping[str, FindingMark] = field(default_factory=dict)
    aer: Aer = field(default_factory=Aer)
    ecc_corrected: int | None = None


def look(record: HealthRecord, evidence: Sighting, now: Instant) -> HealthRecord:
    """After one look."""
    looked = set() if evidence.use.preparing else {Sight.PCI}
    if evidence.nvml is not None:
        looked.add(Sight.NVML)
    shown = {finding.code: finding for finding in find(evidence)}
    levels = {}
    for code in [*record.levels, *(code for code in shown if code not in record.levels)]:
        level = _next(record.levels.get(code), shown.get(code), looked, now)
        if level is not None:
            levels[code] = level
    ecc = corrected_errors(evidence.nvml)
    aer = evidence.function.aer
    after = replace(
        record,
        levels=levels,
        marks={code: mark for code, mark in record.marks.items() if _kept(mark, now)},
        aer=aer,
        ecc_corrected=ecc,
    )
    return _mark(after, grown(record.aer, aer, record.ecc_corrected, ecc), now)


def _next(
    level: Level | None, finding: Finding | None, looked: set[Sight], now: Instant
) -> Level | None:
    if finding is not None:
        if level is None:
            return Level(finding, now, believed=finding.looks <= 1)
        seen = level.seen + 1
        believed = level.believed or seen >= finding.looks
        return Level(finding, level.since, seen, 0, believed)
    if level is None or level.finding.source not in looked:
        return level
    missed = level.missed + 1
    if not level.believed or missed >= _CLEAR_AFTER:
        return None
    return replace(level, seen=0, missed=missed)


def _kept(mark: FindingMark, now: Instant) -> bool:
    passed = now.since(mark.last)
    if passed is None:
        return False  # the host was rebooted
    return mark.finding.action is not HealthAction.WATCH or passed < _WATCHED_S


def note(record: HealthRecord, finding: Finding, now: Instant) -> HealthRecord:
    """After something that the driver or the kernel told by itself."""
    return _mark(record, [finding], now)


def _mark(record: HealthRecord, findings: Iterable[Finding], now: Instant) -> HealthRecord:
    marks = dict(record.marks)
    for finding in findings:
        known = marks.get(finding.code)
        if known is None:
            marks[finding.code] = FindingMark(finding, now, now)
        else:  # what NVML and the kernel's log both tell is one thing, counted by one of them
            more = finding.source is known.finding.source
            count = known.count + more
            marks[finding.code] = FindingMark(known.finding, known.since, now, count)
    return replace(record, marks=marks)


def after_reset(record: HealthRecord) -> HealthRecord:
    """What a reset has mended is gone; what it has not is shown by the next look.

    Errors that the reset itself made are none: counters are counted from the next look on.
    """
    return replace(
        record,
        aer=Aer(),
        ecc_corrected=None,
        levels={
            code: level
            for code, level in record.levels.items()
            if level.finding.action is not HealthAction.RESET
        },
        marks={
            code: mark
            for code, mark in record.marks.items()
            if mark.finding.action is not HealthAction.RESET
        },
    )


def health_of(record: HealthRecord) -> GpuHealth:
    """The worst of what is believed, the weightiest action, every reason, the worst first."""
    believed = [
        (level.finding, level.since, 1) for level in record.levels.values() if level.believed
    ]
    believed += [(mark.finding, mark.since, mark.count) for mark in record.marks.values()]
    if not believed:
        return GpuHealth()
    believed.sort(key=lambda one: (-_SEVERITIES.index(one[0].severity), one[0].code))
    findings = [finding for finding, _, _ in believed]
    return GpuHealth(
        severity=max((one.severity for one in findings), key=_SEVERITIES.index),
        action=max((one.action for one in findings), key=_ACTIONS.index),
        reasons=tuple(
            GpuReason(code=finding.code, detail=_times(finding.detail, count), since=_at(since))
            for finding, since, count in believed
        ),
    )


def _times(detail: str, count: int) -> str:
    return detail if count == 1 else f"{detail} ({count} times)"


def _at(moment: Instant) -> str:
    return moment.wall.strftime("%Y-%m-%dT%H:%M:%SZ")
