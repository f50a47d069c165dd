"""What is wrong with a GPU, by one look or one event: code, severity, action, a sentence. Pure.

A finding of NVML's is neither confirmed nor refuted while NVML does not see the GPU: one whose
rows could not be remapped is not well again because a guest has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.inventory.finding import Finding
from agent.inventory.nvml.values import NvmlEvent, NvmlGpu, NvmlLook, NvmlSilence
from agent.inventory.nvml_findings import nvml_findings, silence_finding, unseen_finding
from agent.inventory.xids import Advice, weigh, xid_finding
from agent.model.gpu import UNUSED, CcMode, GpuUse, HealthAction, Severity, Sight
from agent.model.gpu_boards import is_on_board
from agent.model.ids import Bdf
from agent.model.pci import Aer, PciFunction, PciKind
from agent.model.pci_bars import SPACE_MEND, missing_space
from agent.model.pci_drivers import NVIDIA, SWITCH
from agent.model.pci_link import lost_lanes, lowered_speed, should_be_fast

_UNUSABLE_BY_HOST = frozenset({CcMode.ON, CcMode.PPCIE, CcMode.DEVTOOLS})
_ECC_STORM = 1000  # corrected errors between two looks
# Troubles of NVML as a whole: what the driver has can then neither be judged nor be taken from it.
_HANGING = {
    "nvml_hung": (
        HealthAction.WATCH,
        "every call of the NVIDIA driver that has it hangs: see the kernel log for XIDs and hung "
        "tasks; reload the driver, or reboot the host",
    ),
    "nvml_stuck": (
        HealthAction.REBOOT,
        "it cannot be taken from the NVIDIA driver, in which a call is stuck: reboot the host",
    ),
}


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at one function. `nvml_works`: NVML answered, whether or not with this GPU.

    `silence`: it was asked about this one in vain. `hanging`: the driver that has it hangs as a
    whole, by which code. `on_board`: it sits on a baseboard; `fabric_used`: whose NVSwitches the
    host drives itself.
    """

    function: PciFunction
    nvml: NvmlGpu | None = None
    nvml_works: bool = False
    use: GpuUse = UNUSED
    silence: NvmlSilence | None = None
    hanging: str | None = None
    on_board: bool = False
    fabric_used: bool = False


def sightings(
    functions: Mapping[Bdf, PciFunction], nvml: NvmlLook, uses: Mapping[Bdf, GpuUse]
) -> dict[Bdf, Sighting]:
    """One look at each, from a look at all."""
    seen = {one.bdf: one for one in nvml.gpus}
    silent = {one.bdf: one for one in nvml.silent}
    switches = [one for one in functions.values() if one.kind is PciKind.SWITCH]
    fabric_used = any(one.driver == SWITCH for one in switches)
    code = nvml.trouble.code if nvml.trouble else None
    hanging = code if code in _HANGING else None
    found = {}
    for bdf, function in functions.items():
        has_it = function.driver == NVIDIA and function.kind is PciKind.GPU
        found[bdf] = Sighting(
            function,
            seen.get(bdf),
            nvml_works=nvml.driver_version is not None,
            use=uses.get(bdf, UNUSED),
            silence=silent.get(bdf) if has_it else None,
            hanging=hanging if has_it else None,
            on_board=is_on_board(function.device, beside_switches=bool(switches)),
            fabric_used=fabric_used,
        )
    return found


def find(evidence: Sighting) -> tuple[Finding, ...]:
    """Everything that this look shows. The bus tells nothing of what is being prepared."""
    by_pci = () if evidence.use.preparing else _by_pci(evidence)
    return (*by_pci, *_by_nvml(evidence))


def _by_nvml(seen: Sighting) -> Iterator[Finding]:
    if seen.nvml is not None:
        yield from nvml_findings(seen.nvml, on_board=seen.on_board, fabric_used=seen.fabric_used)


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
    if space := missing_space(function.kind, function.bars):
        yield Finding(
            "bar_unassigned",
            Severity.ERROR,
            HealthAction.REBOOT,
            f"{space}, so that no guest can use it: {SPACE_MEND}",
            Sight.PCI,
        )
    yield from _by_link(seen)
    yield from _unseen(seen)


def _by_link(seen: Sighting) -> Iterator[Finding]:
    """No reset trains the speed anew, so that none is asked for."""
    link = seen.function.link
    if lanes := lost_lanes(link):
        yield Finding(
            "link_width_reduced",
            Severity.WARNING,
            HealthAction.RESET,
            lanes,
            Sight.PCI,
            looks=3,
        )
    speed = lowered_speed(link, power_state=seen.function.power_state)
    busy = _is_busy(seen)
    if speed is not None and busy is not False:
        yield Finding(
            "link_speed_reduced",
            Severity.WARNING if busy else Severity.INFO,
            HealthAction.WATCH,
            f"{speed}, at work" if busy else f"{speed}, which is usual while it idles",
            Sight.PCI,
            looks=3,
        )


def _is_busy(seen: Sighting) -> bool | None:
    """Whether its link should run at full speed; None if nobody tells what it does."""
    utilization = seen.nvml.utilization_percent if seen.nvml else None
    if utilization is not None:
        return should_be_fast(utilization)
    used = seen.use.owner is not None or seen.function.driver == NVIDIA
    return None if used else False


def _unseen(seen: Sighting) -> Iterator[Finding]:
    """What NVML does not show, of what the driver has: nobody knows whether it works.

    A GPU in a confidential mode is not shown by design, and is prepared before anybody has it.
    """
    modes = seen.use.cc_mode
    if modes is not None and modes.active in _UNUSABLE_BY_HOST:
        return
    if seen.hanging is not None:
        action, detail = _HANGING[seen.hanging]
        yield Finding(seen.hanging, Severity.ERROR, action, detail, Sight.PCI)
    elif seen.silence is not None:
        yield silence_finding(seen.silence)
    elif seen.function.driver == NVIDIA and seen.nvml_works and seen.nvml is None:
        yield unseen_finding(HealthAction.WATCH)


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
        return xid_finding(event.data, Sight.NVML)
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
