"""What NVIDIA's drivers say in the kernel's log. Pure.

NVML tells XIDs too, but not while it hangs or is sent away, and it tells nothing of switches. The
forms are those of NVIDIA's documents of Xid and SXid errors and of its open kernel modules.
"""

from __future__ import annotations

import re

from agent.inventory.kernel_said import ADDRESS, Address, Said, finding
from agent.inventory.xids import xid_finding
from agent.model.gpu import HealthAction, Severity, Sight
from agent.model.pci_drivers import NVIDIA

_XID = re.compile(rf"NVRM: Xid \((?:PCI:)?({ADDRESS})\): (\d+)\b")
_SXID = re.compile(rf"nvidia-nvswitch\d+: SXid \(PCI:({ADDRESS})\): (\d+), (Fatal|Non-fatal)\b")
_FALLEN = re.compile(rf"NVRM: .*?\b({ADDRESS})\b.*\bfallen off the bus")
_INIT = re.compile(r"NVRM: .*\b(?:RmInitAdapter|rm_init_adapter) failed")
_BAR = re.compile(rf"NVRM: BAR\d+ is 0M @ 0x0 \(PCI:({ADDRESS})\)")
_NAMED = re.compile(rf"NVRM: GPU (?:at )?(?:PCI:)?({ADDRESS})\b")
_FELL_OFF = 79


def nvidia_message(_level: int, line: str) -> Said | None:
    """What a line of NVIDIA's says, whatever its level. None: nothing, or in passing."""
    if xid := _XID.match(line):
        return Said(xid_finding(int(xid[2]), Sight.PCI), Address.of(xid[1]))
    if sxid := _SXID.match(line):
        return _switch(Address.of(sxid[1]), int(sxid[2]), line, fatal=sxid[3] == "Fatal")
    if fallen := _FALLEN.match(line):
        return Said(xid_finding(_FELL_OFF, Sight.PCI), Address.of(fallen[1]))
    if _INIT.match(line):
        return _not_initialised(line)
    if bar := _BAR.match(line):
        what = finding("kernel_bar_refused", Severity.WARNING, HealthAction.WATCH, line)
        return Said(what, Address.of(bar[1]))
    return None


def _switch(address: Address | None, sxid: int, line: str, *, fatal: bool) -> Said:
    """The driver's own word decides: there is no published action for each number."""
    severity = Severity.ERROR if fatal else Severity.WARNING
    action = HealthAction.RESET if fatal else HealthAction.WATCH
    return Said(finding(f"sxid_{sxid}", severity, action, line), address)


def _not_initialised(line: str) -> Said:
    """An older driver does not say which GPU it could not initialise."""
    named = _NAMED.search(line)
    if named is None:
        unknown = finding("nvidia_init_failed", Severity.WARNING, HealthAction.WATCH, line)
        return Said(unknown, driver=NVIDIA)
    failed = finding("nvidia_init_failed", Severity.ERROR, HealthAction.RESET, line)
    return Said(failed, Address.of(named[1]))
