"""One PCI function as preparation needs it, read anew each time: who drives it, with whom it goes.

All functions of an IOMMU group go together, but for bridges, which vfio leaves to their driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.inventory.sysfs import list_names, read_bytes, read_int, read_link_name
from agent.model.ids import Bdf
from agent.model.pci import PciKind, classify

VFIO = "vfio-pci"
_GOES_ALONG = frozenset({PciKind.GPU, PciKind.SWITCH, PciKind.AUDIO})
_TAKEN_BY_VFIO = frozenset({VFIO, "nvgrace_gpu_vfio_pci"})


@dataclass(frozen=True, slots=True)
class Function:
    """`mates`: the functions of its IOMMU group that go with it, itself included.

    `foreign`: others of the group, which are somebody else's: it can go nowhere.
    """

    bdf: Bdf
    path: Path
    driver: str | None
    iommu_group: int | None
    vfio_device: str | None
    mates: tuple[Bdf, ...]
    foreign: tuple[Bdf, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether a vfio driver has it."""
        return self.driver in _TAKEN_BY_VFIO


def look(sysfs_root: Path, bdf: Bdf) -> Function | None:
    """As it is now; None if there is none. Reads links only: does not wake or disturb it."""
    path = sysfs_root / "bus/pci/devices" / bdf
    if not path.exists():
        return None
    group = read_link_name(path / "iommu_group")
    names = list_names(path / "iommu_group/devices")
    kinds = {Bdf(name): _kind(path.parent / name) for name in names}
    mates = tuple(name for name, kind in kinds.items() if kind in _GOES_ALONG)
    return Function(
        bdf=bdf,
        path=path,
        driver=read_link_name(path / "driver"),
        iommu_group=int(group) if group and group.isdigit() else None,
        vfio_device=next(iter(list_names(path / "vfio-dev")), None),
        mates=mates or (bdf,),
        foreign=tuple(
            name for name, kind in kinds.items() if kind not in _GOES_ALONG | {PciKind.BRIDGE}
        ),
    )


def _kind(path: Path) -> PciKind:
    return classify(
        class_code=read_int(path / "class"),
        vendor=read_int(path / "vendor"),
        virtual=(path / "physfn").is_symlink(),
    )


@dataclass(frozen=True, slots=True)
class Vitals:
    """Whether a device came back: its configuration space, and the lanes of its link."""

    responds: bool
    width: int | None
    max_width: int | None


def vitals(function: Function) -> Vitals:
    """Read now. A device that fell off the bus reads all ones, also as its width (63)."""
    head = read_bytes(function.path / "config", 4)
    return Vitals(
        responds=head is not None and len(head) == 4 and head[:2] != b"\xff\xff",
        width=read_int(function.path / "current_link_width"),
        max_width=read_int(function.path / "max_link_width"),
    )
