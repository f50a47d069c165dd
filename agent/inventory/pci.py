"""GPUs and NVSwitches as the PCI bus shows them, whoever has them: the base of the inventory.

Reading is safe while a guest owns the device: it opens no BAR, resets nothing, and does not wake
a device that sleeps without power. What never changes while a device is there is read once; the
inode of its entry tells whether it still is the same one.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.inventory.host import InventoryError
from agent.inventory.pci_attributes import (
    BDF_FORM,
    parse_bars,
    place_of,
    read_aer,
    read_link,
    read_presence,
    vfio_node,
)
from agent.inventory.pci_use import display_of, parts_in_use, slot_of
from agent.inventory.sysfs import list_names, read_int, read_link_name, read_text
from agent.model.ids import Bdf
from agent.model.pci import Bar, GroupMember, PciFunction, PciKind, classify

_SHOWN = frozenset({PciKind.GPU, PciKind.SWITCH})


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What stays while the device is there."""

    inode: int
    kind: PciKind
    location: str
    ports: tuple[Bdf, ...]
    class_code: int | None
    vendor: int | None
    device: int | None = None
    subsystem_vendor: int | None = None
    subsystem_device: int | None = None
    bars: tuple[Bar, ...] | None = None
    slot: str | None = None


class PciReader:
    """Reads the bus below `sysfs_root`. Blocks for some milliseconds: call it in a thread."""

    def __init__(self, sysfs_root: Path = Path("/sys")) -> None:
        self._root = str(sysfs_root)
        self._devices = f"{sysfs_root}/bus/pci/devices"
        self._fixed: dict[str, _Fixed] = {}

    def read(self) -> tuple[PciFunction, ...]:
        """Every GPU and NVSwitch, by BDF. Raises InventoryError if there is no sysfs to read."""
        try:
            with os.scandir(self._devices) as entries:
                inodes = {e.name: e.inode() for e in entries if BDF_FORM.fullmatch(e.name)}
        except FileNotFoundError:
            if os.path.isdir(f"{self._root}/bus"):  # noqa: PTH112 - a machine without PCI
                return ()
            raise InventoryError(f"{self._root} is no sysfs: it has no bus directory") from None
        except OSError as error:
            raise InventoryError(f"the PCI bus cannot be read from {self._devices}") from error
        self._fixed = {name: self._known(name, inode) for name, inode in inodes.items()}
        shown = sorted(name for name, fixed in self._fixed.items() if fixed.kind in _SHOWN)
        # One that went away meanwhile is missing at this look already.
        found = [one for name in shown if (one := self._function(name)) is not None]
        places = Counter(one.location for one in found)
        return tuple(
            # An odd hypervisor shows several at one place: then only the address tells them apart.
            one if places[one.location] == 1 else msgspec.structs.replace(one, location=one.bdf)
            for one in found
        )

    def _known(self, name: str, inode: int) -> _Fixed:
        fixed = self._fixed.get(name)
        return fixed if fixed and fixed.inode == inode else self._fix(name, inode)

    def _fix(self, name: str, inode: int) -> _Fixed:
        path = f"{self._devices}/{name}"
        class_code, vendor = read_int(f"{path}/class"), read_int(f"{path}/vendor")
        kind = classify(
            class_code=class_code,
            vendor=vendor,
            virtual=os.path.lexists(f"{path}/physfn"),
        )
        location, ports = place_of(name, path)
        if kind not in _SHOWN:
            return _Fixed(inode, kind, location, ports, class_code, vendor)
        return _Fixed(
            inode,
            kind,
            location,
            ports,
            class_code,
            vendor,
            device=read_int(f"{path}/device"),
            subsystem_vendor=read_int(f"{path}/subsystem_vendor"),
            subsystem_device=read_int(f"{path}/subsystem_device"),
            bars=parse_bars(read_text(f"{path}/resource")),
            slot=slot_of(self._root, name),
        )

    def _function(self, name: str) -> PciFunction | None:
        fixed, path = self._fixed[name], f"{self._devices}/{name}"
        driver = read_link_name(f"{path}/driver")
        numa = read_int(f"{path}/numa_node")
        group = read_link_name(f"{path}/iommu_group")
        methods = read_text(f"{path}/reset_method")
        override = read_text(f"{path}/driver_override")
        allowed = read_int(f"{path}/d3cold_allowed")
        power_state = read_text(f"{path}/power_state")
        function = PciFunction(
            bdf=Bdf(name),
            kind=fixed.kind,
            location=fixed.location,
            ports=fixed.ports,
            class_code=fixed.class_code,
            vendor=fixed.vendor,
            device=fixed.device,
            subsystem_vendor=fixed.subsystem_vendor,
            subsystem_device=fixed.subsystem_device,
            driver=driver,
            driver_override=None if override == "(null)" else override,
            numa_node=numa if numa is not None and numa >= 0 else None,
            iommu_group=int(group) if group and group.isdigit() else None,
            group=self._group(path),
            bars=fixed.bars,
            reset_methods=None if methods is None else tuple(methods.split()),
            can_reset=os.path.lexists(f"{path}/reset"),
            d3cold_allowed=None if allowed is None else bool(allowed),
            vfio_device=vfio_node(path),
            link=read_link(path, self._above(fixed.ports)),
            aer=read_aer(path),
            power_state=power_state,
            slot=fixed.slot,
            display=display_of(path, fixed.class_code, driver),
            uses=parts_in_use(path),
            # One that sleeps without power would be woken by being asked.
            responds=None if power_state == "D3cold" else read_presence(path),
        )
        return function if os.path.lexists(path) else None

    def _above(self, ports: tuple[Bdf, ...]) -> str | None:
        """The entry of the port at the other end of its link, if there is one."""
        return f"{self._devices}/{ports[-1]}" if ports else None

    def _group(self, path: str) -> tuple[GroupMember, ...]:
        return tuple(
            GroupMember(
                bdf=Bdf(name),
                kind=self._fixed[name].kind if name in self._fixed else PciKind.OTHER,
                driver=read_link_name(f"{self._devices}/{name}/driver"),
            )
            for name in list_names(f"{path}/iommu_group/devices")
        )
