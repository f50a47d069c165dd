"""One PCI function as preparation needs it, read anew each time: who drives it, with whom it goes.

What goes together, and whether it can, is judged by `agent.model.iommu_group`; how well it is, by
the same functions that the inventory asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.inventory.pci_attributes import place_of, read_link, read_presence, vfio_node
from agent.inventory.sysfs import list_names, read_int, read_link_name
from agent.model.ids import Bdf
from agent.model.iommu_group import GroupVerdict, judge_group
from agent.model.pci import GroupMember, Link, PciKind, classify
from agent.model.pci_drivers import is_vfio
from agent.model.pci_link import lost_lanes


@dataclass(frozen=True, slots=True)
class Function:
    """`group`: what may be done with its IOMMU group."""

    bdf: Bdf
    path: Path
    kind: PciKind
    driver: str | None
    iommu_group: int | None
    vfio_device: str | None
    group: GroupVerdict

    @property
    def mates(self) -> tuple[Bdf, ...]:
        """The functions that go with it, itself included."""
        return self.group.mates

    @property
    def is_ours(self) -> bool:
        """Whether a vfio driver has it."""
        return is_vfio(self.driver)


def look(sysfs_root: Path, bdf: Bdf) -> Function | None:
    """As it is now; None if there is none. Does not wake or disturb it."""
    path = sysfs_root / "bus/pci/devices" / bdf
    if not path.exists():
        return None
    name = read_link_name(path / "iommu_group")
    group = int(name) if name and name.isdigit() else None
    itself = _member(path)
    members = [_member(path.parent / one) for one in list_names(path / "iommu_group/devices")]
    return Function(
        bdf=bdf,
        path=path,
        kind=itself.kind,
        driver=itself.driver,
        iommu_group=group,
        vfio_device=vfio_node(str(path)),
        group=judge_group(bdf, group, members),
    )


def _member(path: Path) -> GroupMember:
    kind = classify(
        class_code=read_int(path / "class"),
        vendor=read_int(path / "vendor"),
        virtual=(path / "physfn").is_symlink(),
    )
    return GroupMember(bdf=Bdf(path.name), kind=kind, driver=read_link_name(path / "driver"))


@dataclass(frozen=True, slots=True)
class Vitals:
    """Whether a device came back: its configuration space, and its link. None: not known."""

    responds: bool | None
    link: Link

    @property
    def fault(self) -> str | None:
        """What is wrong; None if it is sound.

        A device must show that it answers. Of a link that tells nothing of its lanes, that it
        answers is all that can be asked.
        """
        if self.responds is None:
            return "its configuration space cannot be read, or it asks to be tried again"
        if not self.responds:
            return "its configuration space reads all ones"
        return lost_lanes(self.link)


def vitals(function: Function) -> Vitals:
    """Read now; wakes a device that sleeps."""
    path = str(function.path)
    ports = place_of(function.bdf, path)[1]
    above = str(function.path.parent / ports[-1]) if ports else None
    return Vitals(responds=read_presence(path), link=read_link(path, above))
