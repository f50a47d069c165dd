"""What the kernel says of a GPU, or of a port above it: all that is heard while a guest owns it.

Pure. A record of /dev/kmsg is `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT` and lines of its own
after it (Documentation/ABI/testing/dev-kmsg); the text of a device begins with its driver and its
address. The sentences are those of drivers/pci (pci.c, pcie/dpc.c, pcie/err.c, hotplug) and
drivers/vfio/pci. Errors that AER counts are left to its counters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from agent.inventory.findings import Finding
from agent.model.gpu import HealthAction, Severity, Sight
from agent.model.ids import Bdf
from agent.model.pci import PciFunction

_RECORD = re.compile(r"(\d+),\d+,\d+,[^;]*;([^\n]*)")
_DEVICE = re.compile(
    r"(vfio-pci|nvgrace[-_]gpu[-_]vfio[-_]pci|pci|pcieport) "
    r"([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): (.+)"
)
_ERROR = 3  # the kernel's level of errors; less is worse
_LONGEST = 200

# (what is in the text, code, severity, action)
_KNOWN = (
    (
        re.compile(r"not ready \d+ms after .+; giving up"),
        "kernel_not_ready",
        Severity.ERROR,
        HealthAction.RESET,
    ),
    (
        re.compile(r"device inaccessible|config space inaccessible"),
        "kernel_inaccessible",
        Severity.ERROR,
        HealthAction.RESET,
    ),
    (
        re.compile(r"DPC: containment event"),
        "kernel_contained",
        Severity.ERROR,
        HealthAction.RESET,
    ),
    (
        re.compile(r"device recovery failed"),
        "kernel_recovery_failed",
        Severity.ERROR,
        HealthAction.RESET,
    ),
    (
        re.compile(r"Link Down|Card not present"),
        "kernel_link_down",
        Severity.WARNING,
        HealthAction.WATCH,
    ),
    (
        re.compile(r"reset recovery - restoring BARs"),
        "kernel_bars_restored",
        Severity.WARNING,
        HealthAction.WATCH,
    ),
)


class KernelMessage(NamedTuple):
    """A line of the kernel's about one device. `level`: 0 to 7, as of syslog."""

    level: int
    bdf: Bdf
    text: str


def parse(record: bytes) -> KernelMessage | None:
    """None for what is not said of a PCI device by its bus or by vfio."""
    told = _RECORD.match(record.decode(errors="replace"))
    device = _DEVICE.match(told[2]) if told else None
    if told is None or device is None:
        return None
    return KernelMessage(int(told[1]) & 7, Bdf(device[2]), device[3])


def finding_of(message: KernelMessage) -> Finding | None:
    """What it means for the device; None for what is said in passing."""
    text = f"the kernel says: {message.text[:_LONGEST]}"
    for form, code, severity, action in _KNOWN:
        if form.search(message.text):
            return Finding(code, severity, action, text, Sight.PCI)
    if message.level > _ERROR or message.text.startswith("AER:"):
        return None
    return Finding("kernel_error", Severity.WARNING, HealthAction.WATCH, text, Sight.PCI)


def overheard(record: bytes, functions: Iterable[PciFunction]) -> tuple[tuple[Bdf, Finding], ...]:
    """What a record says of these: of that very device, or of all below that port."""
    message = parse(record)
    finding = finding_of(message) if message else None
    if message is None or finding is None:
        return ()
    return tuple((one.bdf, finding) for one in functions if message.bdf in (one.bdf, *one.ports))
