"""Whose a PCI function is, by the name of the driver that has it. Pure; the only list of names.

The kernel lets a group of functions be given to a guest if each of them is without a driver, or
with one that leaves DMA to others (`driver_managed_dma` in Linux): the vfio drivers, pci-stub and
the drivers of ports. Any other driver holds what it has for the host.
"""

from __future__ import annotations

import re

VFIO_PCI = "vfio-pci"
PCI_STUB = "pci-stub"
NVIDIA = "nvidia"
SWITCH = "nvidia-nvswitch"

# A variant for one kind of device has a name before (nvgrace_gpu_vfio_pci, mlx5_vfio_pci), and
# kernels write both `-` and `_`.
_VFIO = re.compile(r"(\w+_)?vfio_pci")
_PORTS = frozenset({"pcieport", "shpchp"})
# Those that a GPU or switch may be taken from; another one has it for somebody.
_YIELDING = frozenset({NVIDIA, SWITCH, "nouveau", "nova-core"})


def is_vfio(driver: str | None) -> bool:
    """Whether this is a driver that hands a function to guests."""
    return driver is not None and _VFIO.fullmatch(driver.replace("-", "_")) is not None


def is_kept_for_guests(driver: str | None) -> bool:
    """Whether the host has set the function aside for guests."""
    return is_vfio(driver) or driver == PCI_STUB


def is_held(driver: str | None) -> bool:
    """Whether the host uses the function, so that nothing of its IOMMU group can be a guest's."""
    return not (driver is None or driver in _PORTS or is_kept_for_guests(driver))


def yields(driver: str | None) -> bool:
    """Whether a GPU or switch that this driver has, and nobody uses, may be taken from it."""
    return driver is None or driver in _YIELDING or is_kept_for_guests(driver)
