"""PCI functions as sysfs shows them. What could not be read is None, never zero."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.model.ids import Bdf

NVIDIA = 0x10DE


class PciKind(StrEnum):
    """What a function is to us. Only a `GPU` is ever handed out.

    `VIRTUAL`: a virtual function of somebody's device. `FOREIGN_GPU`: another vendor's.
    """

    GPU = "gpu"
    SWITCH = "switch"
    VIRTUAL = "virtual"
    AUDIO = "audio"
    BRIDGE = "bridge"
    FOREIGN_GPU = "foreign_gpu"
    OTHER = "other"


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The PCIe link: as trained now, and at best. Speed in GT/s, width in lanes.

    The best is what both of its ends can do: a card in a narrower slot has all its lanes.
    """

    speed_gts: float | None = None
    width: int | None = None
    max_speed_gts: float | None = None
    max_width: int | None = None


class Aer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Errors that the kernel's AER driver has counted since boot; None: it does not count here."""

    correctable: int | None = None
    nonfatal: int | None = None
    fatal: int | None = None


class Bar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One memory or I/O region. `index` 0 to 5. Not `assigned`: the kernel found no address."""

    index: int
    size_bytes: int
    is_64bit: bool
    prefetchable: bool
    assigned: bool = True


class GroupMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One function of an IOMMU group, and the driver that has it."""

    bdf: Bdf
    kind: PciKind
    driver: str | None


class PciFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One function.

    `location`: where it sits, without bus numbers, so that it is the same after a reboot that
    renumbers them. `ports`: the bridges above it, the nearest last. `responds`: False when its
    configuration space reads all ones: it fell off the bus. `group`: every function of its IOMMU
    group, itself included; empty without an IOMMU.
    `vfio_device`: the name of its character device under /dev/vfio/devices; None: it has none.
    `power_state`: D0, D1, D2, D3hot or D3cold, as the kernel names them.
    `slot`: the label of the slot that it is in. `display`: how it drives a display of the host's.
    `uses`: what was made of it and is somebody's, in words.
    """

    bdf: Bdf
    kind: PciKind
    location: str
    ports: tuple[Bdf, ...] = ()
    class_code: int | None = None
    vendor: int | None = None
    device: int | None = None
    subsystem_vendor: int | None = None
    subsystem_device: int | None = None
    driver: str | None = None
    driver_override: str | None = None
    numa_node: int | None = None
    iommu_group: int | None = None
    group: tuple[GroupMember, ...] = ()
    bars: tuple[Bar, ...] | None = None
    reset_methods: tuple[str, ...] | None = None
    can_reset: bool = False
    d3cold_allowed: bool | None = None
    vfio_device: str | None = None
    link: Link = Link()
    aer: Aer = Aer()
    power_state: str | None = None
    slot: str | None = None
    display: str | None = None
    uses: tuple[str, ...] = ()
    responds: bool | None = None

    @property
    def bar_bytes(self) -> int | None:
        """Address space that its regions take, which a guest's MMIO window must hold."""
        return None if self.bars is None else sum(bar.size_bytes for bar in self.bars)


def classify(*, class_code: int | None, vendor: int | None, virtual: bool) -> PciKind:
    """What a function is, by its class, its vendor, and whether it is a virtual function.

    Display 0x0300 and 0x0302 are GPUs; 0x0680 ("other bridge") of NVIDIA is an NVSwitch, of
    anybody else a bridge; the rest of 0x06 is bridges; 0x0403 is a GPU's audio function.
    """
    if virtual:
        return PciKind.VIRTUAL
    if class_code is None:
        return PciKind.OTHER
    base, sub = class_code >> 16, class_code >> 8
    if sub in (0x0300, 0x0302):
        return PciKind.GPU if vendor == NVIDIA else PciKind.FOREIGN_GPU
    if sub == 0x0680 and vendor == NVIDIA:
        return PciKind.SWITCH
    if base == 0x06:
        return PciKind.BRIDGE
    return PciKind.AUDIO if sub == 0x0403 else PciKind.OTHER
