"""NVIDIA's XIDs and what to do about each: its catalogue of October 2025. Pure.

On the host an XID tells of a GPU that the host's driver has; those of a GPU that was given away
are told inside its guest. The driver tells it twice, by NVML and in the kernel's log. A number
that is not in the catalogue, or that it has no action for, is told and nothing is done. Those that
it says to ignore (108, 160) or to do nothing about (162) are tracked.
"""

from __future__ import annotations

from enum import StrEnum

from agent.inventory.finding import Finding
from agent.model.gpu import HealthAction, Severity, Sight


class Advice(StrEnum):
    """The catalogue's own words."""

    RESET_GPU = "reset the GPU"
    REBOOT_HOST = "reboot the host"
    RESTART_ENCLAVE = "restart the enclave"
    RESTART_APPLICATION = "restart the application"
    INVESTIGATE = "investigate"
    TRACK = "track only"
    INFORM = "informational"


_NUMBERS: dict[Advice, tuple[int, ...]] = {
    Advice.RESET_GPU: (46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158),
    Advice.REBOOT_HOST: (79,),
    Advice.RESTART_ENCLAVE: (151,),
    Advice.RESTART_APPLICATION: (
        *(8, 11, 13, 25, 31, 32, 39, 40, 41, 60),
        *range(68, 73),
        *range(75, 78),
        *(80, 82, 83, 84, 85, 86, 88, 89, 94),
        *range(96, 106),
        *range(126, 136),
        139,
    ),
    Advice.INVESTIGATE: (45, 48, 54, 74, 78, *range(144, 151)),
    Advice.TRACK: (
        *(37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 108),
        *(121, 137, 141, 152, 153, 157, 160, 161, 162),
    ),
    Advice.INFORM: (154,),
}

XIDS: dict[int, Advice] = {
    number: advice for advice, numbers in _NUMBERS.items() for number in numbers
}


def advice_on(xid: int) -> Advice:
    """What the catalogue says."""
    return XIDS.get(xid, Advice.INVESTIGATE)


def weigh(advice: Advice) -> tuple[Severity, HealthAction]:
    """How bad that is for the GPU, and what to do about the GPU."""
    match advice:
        case Advice.RESET_GPU:
            return Severity.ERROR, HealthAction.RESET
        case Advice.REBOOT_HOST:
            return Severity.ERROR, HealthAction.REBOOT
        case Advice.RESTART_ENCLAVE | Advice.INVESTIGATE:
            return Severity.WARNING, HealthAction.WATCH
        case Advice.RESTART_APPLICATION | Advice.TRACK | Advice.INFORM:
            return Severity.INFO, HealthAction.WATCH


def xid_finding(xid: int, source: Sight) -> Finding:
    """What an XID says of its GPU. `source`: through whom it was heard."""
    advice = advice_on(xid)
    severity, action = weigh(advice)
    return Finding(f"xid_{xid}", severity, action, f"XID {xid}: {advice}", source)
