"""What is wrong with a GPU, by one look or one event: code, severity, action, a sentence. Pure.

A finding of NVML's is neither confirmed nor refuted while NVML does not see the GPU: one whose
rows could not be remapped is not well again because a guest has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.inventory.nvml.values import NvmlEvent, NvmlGpu
from agent.inventory.xids import Advice, advice_on, weigh
from agent.model.gpu import UNUSED, CcMode, GpuUse, HealthAction, Severity, Sight
from agent.model.pci import Aer, Link, PciFunction

_HW_SLOWDOWN = 0x8 | 0x40 | 0x80  # slowdown, thermal slowdown, power brake
_UNUSABLE_BY_HOST = frozenset({CcMode.ON, CcMode.PPCIE, CcMode.DEVTOOLS})
_ECC_STORM = 1000  # corrected errors between two looks

# NVML's field 230: (severity, action, name). A newer driver may answer others.
RECOVERY: dict[int, tuple[Severity, HealthAction, str]] = {
    1: (Severity.ERROR, HealthAction.RESET, "a reset of the GPU"),
    2: (Severity.ERROR, HealthAction.REBOOT, "a reboot of the host"),
    3: (Severity.WARNING, HealthAction.RESET, "an end of peer-to-peer work, then a reset"),
    4: (Severity.ERROR, HealthAction.RESET, "an end of all work, then a reset"),
    5: (Severity.WARNING, HealthAction.WATCH, "a recovery of the IMEX domain"),
    6: (Severity.ERROR, HealthAction.RESET, "a reset of the bus"),
    7: (Severity.ERROR, HealthAction.REBOOT, "a reboot of the host"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing. `looks`: how many looks in a row must show it before it is believed."""

    code: str
    severity: Severity
    action: HealthAction
    detail: str
    source: Sight = Sight.NVML
    looks: int = 1


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at one function. `nvml_works`: NVML answered, whether or not with this GPU."""

    function: PciFunction
    nvml: NvmlGpu | None = None
    nvml_works: bool = False
    use: GpuUse = UNUSED


def find(evidence: Sighting) -> tuple[Finding, ...]:
    """Everything that this look shows. The bus tells nothing of what is being prepared."""
    by_pci = () if evidence.use.preparing else _by_pci(evidence)
    return (*by_pci, *(_by_nvml(evidence.nvml) if evidence.nvml else ()))


def _by_pci(seen: Sighting) -> Iterator[Finding]:
    function = seen.function
    if function.responds is False:
        yield Finding(
            "config_space_dead",
            Severity.ERROR,
            HealthAction.RESET,
            "its configuration space reads all ones: reset its bus, else remove and rescan it, "
            "else reboot the host",
            Sight.PCI,
            looks=2,  # a bus that is being reset reads the same for a moment
        )
        return
    managed = function.driver == "nvidia" or seen.use.owner is not None
    yield from _by_link(function.link, managed=managed)
    hidden = seen.use.cc_mode is not None and seen.use.cc_mode.active in _UNUSABLE_BY_HOST
    if function.driver == "nvidia" and seen.nvml_works and seen.nvml is None and not hidden:
        yield Finding(
            "nvml_unseen",
            Severity.WARNING,
            HealthAction.WATCH,
            "the nvidia driver has it and NVML does not show it: see the kernel log",
            Sight.PCI,
            looks=3,
        )


def _by_link(link: Link, *, managed: bool) -> Iterator[Finding]:
    """A driver that manages the GPU lowers the speed of an idle link; its width never.

    No reset trains the speed anew, so that none is asked for.
    """
    if link.width is not None and link.max_width is not None and link.width < link.max_width:
        yield Finding(
            "link_width_reduced",
            Severity.WARNING,
            HealthAction.RESET,
            f"its link has {link.width} of {link.max_width} lanes",
            Sight.PCI,
            looks=3,
        )
    now, best = link.speed_gts, link.max_speed_gts
    if now is not None and best is not None and now < best:
        yield Finding(
            "link_speed_reduced",
            Severity.INFO if managed else Severity.WARNING,
            HealthAction.WATCH,
            f"its link runs at {now:g} of {best:g} GT/s",
            Sight.PCI,
            looks=3,
        )


def _by_nvml(gpu: NvmlGpu) -> Iterator[Finding]:
    if gpu.lost:
        yield Finding(
            "gpu_lost",
            Severity.ERROR,
            HealthAction.REBOOT,
            "the driver lost it: reboot the host",
        )
        return
    if gpu.reset_required:
        yield Finding(
            "reset_required", Severity.ERROR, HealthAction.RESET, "the driver asks for a reset"
        )
    if gpu.recovery:
        yield _recovery(gpu.recovery)
    yield from _by_memory(gpu.ecc or {}, gpu.remapped_rows or {})
    if gpu.mig:
        yield Finding(
            "mig_on",
            Severity.WARNING,
            HealthAction.RESET,
            "MIG is on, and it is given out whole only: turn it off (nvidia-smi -mig 0)",
        )
    if gpu.fabric is not None and gpu.fabric.get("status"):
        yield Finding(
            "fabric_unhealthy",
            Severity.WARNING,
            HealthAction.WATCH,
            f"its NVLink fabric reports error {gpu.fabric['status']}: see the fabric manager",
            looks=3,
        )
    if (gpu.clocks_event_reasons or 0) & _HW_SLOWDOWN:
        yield Finding(
            "clocks_slowed",
            Severity.WARNING,
            HealthAction.WATCH,
            "the hardware slows its clocks: see to its cooling and power",
            looks=3,
        )


def _recovery(number: int) -> Finding:
    severity, action, name = RECOVERY.get(
        number, (Severity.WARNING, HealthAction.WATCH, f"recovery action {number}, not known here")
    )
    return Finding("recovery_action", severity, action, f"the driver asks for {name}")


def _by_memory(ecc: dict[str, Any], rows: dict[str, Any]) -> Iterator[Finding]:
    if rows.get("failure"):
        yield Finding(
            "row_remap_failure",
            Severity.ERROR,
            HealthAction.RETURN,
            "bad memory could not be remapped: return it",
        )
    if rows.get("pending") or ecc.get("retired_pages_pending"):
        yield Finding(
            "row_remap_pending",
            Severity.WARNING,
            HealthAction.RESET,
            "bad memory is remapped at the next reset",
        )
    if ecc.get("sram_threshold_exceeded"):
        yield Finding(
            "sram_errors",
            Severity.ERROR,
            HealthAction.RETURN,
            "its SRAM has had more uncorrectable errors than allowed: return it",
        )
    if ecc.get("enabled") is False:
        yield Finding(
            "ecc_off", Severity.WARNING, HealthAction.WATCH, "ECC is off: turn it on and reset"
        )
    if count := (ecc.get("volatile") or {}).get("uncorrected"):
        yield Finding(
            "ecc_uncorrected",
            Severity.WARNING,
            HealthAction.RESET,
            f"{count} uncorrectable memory errors since its last reset",
        )


def corrected_errors(gpu: NvmlGpu | None) -> int | None:
    """The counter of corrected memory errors, which only its growth says something about."""
    volatile = ((gpu.ecc if gpu else None) or {}).get("volatile") or {}
    count = volatile.get("corrected")
    return count if isinstance(count, int) else None


def grown(before: Aer, now: Aer, ecc_before: int | None, ecc_now: int | None) -> list[Finding]:
    """What counters tell that grew since the look before; a reset sets them back."""
    found = []
    if fatal := _growth(before.fatal, now.fatal):
        text = f"{fatal} fatal PCIe errors"
        found.append(_noted("aer_fatal", Severity.ERROR, HealthAction.RESET, text))
    if nonfatal := _growth(before.nonfatal, now.nonfatal):
        text = f"{nonfatal} uncorrectable PCIe errors"
        found.append(_noted("aer_nonfatal", Severity.WARNING, HealthAction.WATCH, text))
    if correctable := _growth(before.correctable, now.correctable):
        text = f"{correctable} corrected PCIe errors"
        found.append(_noted("aer_correctable", Severity.INFO, HealthAction.WATCH, text))
    if (corrected := _growth(ecc_before, ecc_now)) >= _ECC_STORM:
        text = f"{corrected} corrected memory errors"
        found.append(_noted("ecc_storm", Severity.WARNING, HealthAction.WATCH, text))
    return found


def _growth(before: int | None, now: int | None) -> int:
    return 0 if before is None or now is None else max(0, now - before)


def _noted(code: str, severity: Severity, action: HealthAction, text: str) -> Finding:
    return Finding(code, severity, action, f"{text} between two looks")


def told(event: NvmlEvent) -> Finding:
    """What the driver told by itself."""
    if event.kind == "xid":
        advice = advice_on(event.data)
        severity, action = weigh(advice)
        return Finding(f"xid_{event.data}", severity, action, f"XID {event.data}: {advice}")
    if event.kind == "recovery_action":
        severity, action = weigh(Advice.INVESTIGATE)
        return Finding(
            "recovery_changed", severity, action, "the driver's recovery action changed"
        )
    return Finding(
        "unavailable",
        Severity.ERROR,
        HealthAction.RESET,
        "the driver says that it is not available",
    )
