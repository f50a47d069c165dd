"""What the kernel says of a GPU, or of a port above it: all that is heard while a guest owns it.

Pure. A record of /dev/kmsg is `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT` and lines of its own
after it (Documentation/ABI/testing/dev-kmsg). The text of a device begins with whatever driver has
it, and its address; the IOMMU and the NVIDIA driver name the device further on, and not always all
of its address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agent.inventory.finding import Finding
from agent.inventory.kernel_iommu import iommu_message
from agent.inventory.kernel_nvidia import nvidia_message
from agent.inventory.kernel_pci import device_message
from agent.inventory.kernel_said import Said
from agent.model.ids import Bdf
from agent.model.pci import PciFunction

_RECORD = re.compile(r"(\d+),\d+,\d+,[^;]*;([^\n]*)")
_KERNELS_LOWEST = 7  # above the level are the bits of the facility, 0 for the kernel
_READERS: tuple[Callable[[int, str], Said | None], ...] = (
    device_message,
    iommu_message,
    nvidia_message,
)


class KernelMessage(NamedTuple):
    """A line of the kernel's. `level`: 0 to 7, as of syslog."""

    level: int
    text: str


def parse(record: bytes) -> KernelMessage | None:
    """None for what is no record, or not the kernel's own: programs may write there, too."""
    told = _RECORD.match(record.decode(errors="replace"))
    if told is None or int(told[1]) > _KERNELS_LOWEST:
        return None
    return KernelMessage(int(told[1]), told[2])


def said_in(message: KernelMessage) -> Said | None:
    """What it says of a device, of a driver's devices or of all; None if nothing is wrong."""
    said = (reader(message.level, message.text) for reader in _READERS)
    return next((one for one in said if one is not None), None)


def finding_of(message: KernelMessage) -> Finding | None:
    """What it means for whom it is about; None for what is said in passing."""
    said = said_in(message)
    return said.finding if said else None


def overheard(record: bytes, functions: Iterable[PciFunction]) -> tuple[tuple[Bdf, Finding], ...]:
    """What a record says of these: of that very device or card, or of all below that port."""
    message = parse(record)
    said = said_in(message) if message else None
    if said is None:
        return ()
    return tuple((one.bdf, said.finding) for one in functions if said.is_about(one))
