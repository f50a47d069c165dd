"""What NVML tells is wrong with a GPU, or that it tells nothing of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.inventory.fabric import fabric_findings
from agent.inventory.finding import Finding
from agent.inventory.nvml.resting import NOT_THERE
from agent.inventory.nvml.values import NvmlGpu, NvmlSilence
from agent.model.gpu import HealthAction, Severity, Sight

_HW_SLOWDOWN = 0x8 | 0x40 | 0x80  # slowdown, thermal slowdown, power brake

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


def nvml_findings(gpu: NvmlGpu, *, on_board: bool, fabric_used: bool) -> Iterator[Finding]:
    """`on_board`: it sits on a baseboard. `fabric_used`: the host drives the switches of that."""
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
    elif gpu.mute is not None:
        yield Finding(
            "nvml_mute",
            Severity.ERROR,
            HealthAction.RESET,
            f"no call of the driver can read it (NVML error {gpu.mute}): see the kernel log",
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
    yield from fabric_findings(gpu.fabric, gpu.nvlink, on_board=on_board, used=fabric_used)
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


# Errors of NVML about a GPU that it does not give away; the names are those of nvml.h.
_REFUSALS: dict[int | None, tuple[str, Severity, HealthAction, str]] = {
    None: (
        "nvml_hung",
        Severity.ERROR,
        HealthAction.RESET,
        "a call of the NVIDIA driver about it hangs: see the kernel log for XIDs and hung tasks",
    ),
    4: (
        "nvml_forbidden",
        Severity.WARNING,
        HealthAction.WATCH,
        "NVML may not be asked about it: let the agent's user open its /dev/nvidia*",
    ),
    8: (
        "power_cables",
        Severity.ERROR,
        HealthAction.WATCH,
        "its power cables are not connected as they should be: see to them, then reboot the host",
    ),
    15: ("gpu_lost", Severity.ERROR, HealthAction.REBOOT, "the driver lost it: reboot the host"),
    16: ("reset_required", Severity.ERROR, HealthAction.RESET, "the driver asks for a reset"),
}


def silence_finding(silence: NvmlSilence) -> Finding:
    """What it means that NVML tells nothing of a GPU. A look at the bus shows it is so still."""
    if silence.error in NOT_THERE:
        return unseen_finding(HealthAction.RESET)
    unknown = f"the driver cannot use it (NVML error {silence.error}): see the kernel log"
    code, severity, action, detail = _REFUSALS.get(
        silence.error, ("nvml_refused", Severity.ERROR, HealthAction.RESET, unknown)
    )
    return Finding(code, severity, action, detail, Sight.PCI)


def unseen_finding(action: HealthAction) -> Finding:
    """The driver has it, and NVML does not know it: nobody can tell whether it works."""
    return Finding(
        "nvml_unseen",
        Severity.ERROR,
        action,
        "the nvidia driver has it and NVML does not show it: see the kernel log",
        Sight.PCI,
        looks=2,  # a driver that has just got it may need a moment
    )
