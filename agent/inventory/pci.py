"""GPUs and NVSwitches as the PCI bus shows them, whoever has them: the base of the inventory.

Reading is safe while a guest owns the device: it opens no BAR, resets nothing, and does not wake
a device that sleeps without power. What never changes while a device is there is read once; the
inode of its entry tells whether it still is the same one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.inventory.host import InventoryError
from agent.inventory.pci_use import display_of, slot_of
from agent.inventory.sysfs import list_names, read_bytes, read_int, read_link_name, read_text
from agent.model.ids import Bdf
from agent.model.pci import Aer, Bar, GroupMember, Link, PciFunction, PciKind, classify

N = TypeVar("N", int, float)

_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?) GT/s")
_WIDTHS = frozenset({1, 2, 4, 8, 12, 16, 32})  # 0, 63 and 255 are what a lost link reads as
_BARS = 6
_MEM, _PREFETCH, _MEM_64 = 0x200, 0x2000, 0x100000
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
                inodes = {e.name: e.inode() for e in entries if _BDF.fullmatch(e.name)}
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
        location, ports = _place(name, path)
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
            vfio_device=next(iter(list_names(f"{path}/vfio-dev")), None),
            link=_link(path, self._above(fixed.ports)),
            aer=_aer(path),
            slot=fixed.slot,
            display=display_of(path, fixed.class_code, driver),
            responds=_responds(path),
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


def _place(name: str, path: str) -> tuple[str, tuple[Bdf, ...]]:
    """(location, the ports above it, the nearest last).

    `pci0000:15/01.0/00.0`: the root bus, which the firmware gives, then device and function of
    every bridge on the way, which the board gives; the bus numbers between are left out.
    """
    try:
        real = os.readlink(path)  # noqa: PTH115 - called for every device of the host
    except OSError:
        return name, ()
    parts = real.split("/")
    root = next((i for i, part in enumerate(parts) if part.startswith("pci")), None)
    if root is None:
        return name, ()
    way = [part.rpartition(":")[2] for part in parts[root + 1 :]]
    ports = tuple(Bdf(part) for part in parts[root + 1 : -1] if _BDF.fullmatch(part))
    return "/".join([parts[root], *way]), ports


def parse_bars(text: str | None) -> tuple[Bar, ...] | None:
    """From `resource`: `start end flags` in hex a line, the six BARs first; unused ones are 0."""
    if text is None:
        return None
    bars = []
    for index, line in enumerate(text.splitlines()[:_BARS]):
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            return None
        if end > start:
            bars.append(
                Bar(
                    index=index,
                    size_bytes=end - start + 1,
                    is_64bit=bool(flags & _MEM and flags & _MEM_64),
                    prefetchable=bool(flags & _PREFETCH),
                )
            )
    return tuple(bars)


def _link(path: str, above: str | None) -> Link:
    """The best of a link is what both of its ends can do: a slot may be slower than its card."""
    ends = [path, *([above] if above else [])]
    return Link(
        speed_gts=_speed(f"{path}/current_link_speed"),
        width=_width(f"{path}/current_link_width"),
        max_speed_gts=_least(_speed(f"{end}/max_link_speed") for end in ends),
        max_width=_least(_width(f"{end}/max_link_width") for end in ends),
    )


def _speed(path: str) -> float | None:
    found = _SPEED.match(read_text(path) or "")
    return float(found[1]) if found else None


def _width(path: str) -> int | None:
    width = read_int(path)
    return width if width in _WIDTHS else None


def _least(values: Iterable[N | None]) -> N | None:
    return min((value for value in values if value is not None), default=None)


def _aer(path: str) -> Aer:
    """The kernel prints a line a kind of error and the total last."""
    return Aer(
        correctable=_total(f"{path}/aer_dev_correctable", "TOTAL_ERR_COR"),
        nonfatal=_total(f"{path}/aer_dev_nonfatal", "TOTAL_ERR_NONFATAL"),
        fatal=_total(f"{path}/aer_dev_fatal", "TOTAL_ERR_FATAL"),
    )


def _total(path: str, name: str) -> int | None:
    for line in reversed((read_text(path) or "").splitlines()):
        word, _, count = line.rpartition(" ")
        if word == name and count.isdigit():
            return int(count)
    return None


def _responds(path: str) -> bool | None:
    """Whether its configuration space answers; not asked of one in D3cold, which would wake it."""
    if read_text(f"{path}/power_state") == "D3cold":
        return None
    head = read_bytes(f"{path}/config", 4)
    return None if head is None or len(head) < 4 else head != b"\xff\xff\xff\xff"
