"""What the IOMMU says of a device: requests that it refused, invalidations that timed out. Pure.

The sentences are those of drivers/iommu: amd/iommu.c (`AMD-Vi: Event logged [NAME device=…]`) and
intel/dmar.c (`DMAR: [DMA Read …] Request device [18:00.0]`, `… Time-out Error: SID …`). A device
that does not answer an invalidation hangs, and may take the host along. VT-d names it, if at all,
in the descriptor that it prints after the error.
"""

from __future__ import annotations

import re

from agent.inventory.finding import Finding
from agent.inventory.kernel_said import ADDRESS, Address, Said, finding
from agent.model.gpu import HealthAction, Severity

_AMD = re.compile(rf"\bEvent logged \[(\w+)(?: device=({ADDRESS}))?")
_AMD_TIMEOUT = "IOTLB_INV_TIMEOUT"
_AMD_WAIT = re.compile(r"AMD-Vi: Completion-Wait loop timed out")
_INTEL = re.compile(rf"DMAR:\s?\[(?:DMA|INTR)[^\]]*\] Request device \[({ADDRESS})\]")
_INTEL_TIMEOUT = re.compile(r"DMAR: VT-d detected Invalidation Time-out Error: SID ([0-9a-f]+)")
_INTEL_QUEUE = re.compile(r"DMAR: VT-d detected Invalidation (?:Queue|Completion) Error")
_INTEL_PRIOR = re.compile(
    r"DMAR: QI PRIOR: (PASID-based )?Device-TLB Invalidation qw0 = 0x([0-9a-f]+)"
)


def iommu_message(_level: int, line: str) -> Said | None:
    """What a line of the IOMMU's says, whatever its level. None: nothing."""
    if _AMD_WAIT.search(line) or _INTEL_QUEUE.search(line):
        return Said(_iommu_hangs(line))
    if amd := _AMD.search(line):
        address = Address.of(amd[2]) if amd[2] else None
        named = _of_amd(amd[1], line) if address else _iommu_hangs(line)
        return Said(named, address)
    if intel := _INTEL.search(line):
        return Said(_fault(line), Address.of(intel[1]))
    if late := _INTEL_TIMEOUT.search(line):
        return _late(Address.of_requester(int(late[1], 16) & 0xFFFF), line)
    if prior := _INTEL_PRIOR.search(line):
        word = int(prior[2], 16)
        return _late(Address.of_requester((word >> (16 if prior[1] else 32)) & 0xFFFF), line)
    return None


def device_fault(text: str) -> Finding | None:
    """What AMD's driver says of a device that it knows, under that device's own name."""
    amd = _AMD.search(text)
    return _of_amd(amd[1], text) if amd else None


def _of_amd(event: str, text: str) -> Finding:
    return _timed_out(text) if event == _AMD_TIMEOUT else _fault(text)


def _late(address: Address | None, text: str) -> Said:
    return Said(_timed_out(text) if address else _iommu_hangs(text), address)


def _fault(text: str) -> Finding:
    return finding("iommu_fault", Severity.WARNING, HealthAction.WATCH, text)


def _timed_out(text: str) -> Finding:
    return finding("iommu_timeout", Severity.ERROR, HealthAction.RESET, text)


def _iommu_hangs(text: str) -> Finding:
    """Which device it is about is not told: it may be any."""
    return finding("iommu_error", Severity.WARNING, HealthAction.WATCH, text)
