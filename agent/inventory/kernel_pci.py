"""What the kernel says of a device by its name: `DRIVER ADDRESS: TEXT`. Pure.

The sentences are those of drivers/pci (pci.c, probe.c, quirks.c, setup-res.c, pcie/dpc.c,
pcie/err.c, hotplug) and drivers/vfio/pci; the PCI core speaks under the name of the driver that
has the device. Errors that AER counts are left to its counters.
"""

from __future__ import annotations

import re

from agent.inventory.kernel_iommu import device_fault
from agent.inventory.kernel_said import ADDRESS, Address, Said, finding
from agent.model.gpu import HealthAction, Severity

_DEVICE = re.compile(rf"[^\s:]+ ({ADDRESS}): (.+)")
_PROBE = re.compile(rf"[^\s:]+: probe of ({ADDRESS}) (failed with error .+)")
_ERROR = 3  # the kernel's level of errors; less is worse
_COUNTED = re.compile(
    r"\s*(AER:|PCIe Bus Error:|device \[[0-9a-f]{4}:[0-9a-f]{4}\] error|\[ ?\d+\])"
)

_KNOWN = (
    (
        r"not ready \d+ms after .+; giving up",
        "kernel_not_ready",
        Severity.ERROR,
        HealthAction.RESET,
    ),
    (
        r"device inaccessible|config space inaccessible",
        "kernel_inaccessible",
        Severity.ERROR,
        HealthAction.RESET,
    ),
    (
        r"[Rr]efused to change power state",
        "kernel_power_state",
        Severity.WARNING,
        HealthAction.WATCH,
    ),
    (r"DPC: containment event", "kernel_contained", Severity.ERROR, HealthAction.RESET),
    (r"device recovery failed", "kernel_recovery_failed", Severity.ERROR, HealthAction.RESET),
    (
        r"Link Down|Card not present|Link Active not set|broken device, retrain|retraining failed",
        "kernel_link_down",
        Severity.WARNING,
        HealthAction.WATCH,
    ),
    (
        r"^(probe with driver \S+ )?failed with error -\d+",
        "kernel_probe_failed",
        Severity.WARNING,
        HealthAction.WATCH,
    ),
    (
        r"reset recovery - restoring BARs",
        "kernel_bars_restored",
        Severity.WARNING,
        HealthAction.WATCH,
    ),
    (
        r"BAR \d+\b.*(failed to assign|can't assign|no space|can't reserve|can't claim)",
        "kernel_bar_refused",
        Severity.WARNING,
        HealthAction.WATCH,
    ),
)
_FORMS = [(re.compile(form), code, severity, action) for form, code, severity, action in _KNOWN]


def device_message(level: int, line: str) -> Said | None:
    """What a line says of the device that it begins with. None: of none, or in passing."""
    told = _DEVICE.match(line) or _PROBE.match(line)
    address = Address.of(told[1]) if told else None
    if told is None or address is None:
        return None
    text = told[2]
    for form, code, severity, action in _FORMS:
        if form.search(text):
            return Said(finding(code, severity, action, text), address)
    fault = device_fault(text)
    if fault is not None:
        return Said(fault, address)
    if level > _ERROR or _COUNTED.match(text):
        return None
    return Said(finding("kernel_error", Severity.WARNING, HealthAction.WATCH, text), address)
