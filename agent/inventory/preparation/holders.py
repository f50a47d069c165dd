"""Who has a device open: found before it is unbound or reset, which would hang or break them.

Whatever opens a GPU does so through its vfio group or device, the nvidia driver's device, or its
entry in sysfs (its BARs and configuration space). Programs may come and go while this looks; it is
asked again whenever it matters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from agent.inventory.preparation.errors import Holder
from agent.inventory.preparation.functions import Function
from agent.inventory.sysfs import read_text
from agent.model.ids import Bdf

_MINOR = re.compile(r"^Device Minor:\s*(\d+)", re.MULTILINE)
_NVIDIA_DEVICE = re.compile(r"/dev/nvidia\d+")
_SWITCH_DEVICE = re.compile(r"/dev/nvidia-nvswitch\d+")  # not told apart: a fabric manager has all


def find_holders(
    functions: Collection[Function], proc_root: Path = Path("/proc")
) -> tuple[Holder, ...]:
    """Every process, ours included, that has one of these open. Walks all of /proc: blocks."""
    nodes = set[str]()
    any_nvidia = False
    any_switch = any(one.driver == "nvidia-nvswitch" for one in functions)
    for one in functions:
        nodes |= {f"/dev/vfio/{one.iommu_group}"} if one.iommu_group is not None else set()
        nodes |= {f"/dev/vfio/devices/{one.vfio_device}"} if one.vfio_device else set()
        if one.driver == "nvidia":
            minor = _minor(one.bdf, proc_root)
            nodes |= {f"/dev/nvidia{minor}"} if minor else set()
            any_nvidia = any_nvidia or minor is None
    entries = tuple(f"/{one.bdf}/" for one in functions)

    def touches(target: str) -> bool:
        if target in nodes or (any_nvidia and _NVIDIA_DEVICE.fullmatch(target)):
            return True
        if any_switch and _SWITCH_DEVICE.fullmatch(target):
            return True
        return any(entry in target for entry in entries)

    found = []
    for pid in _pids(proc_root):
        path = next((one for one in _open_files(proc_root, pid) if touches(one)), None)
        if path is not None:
            program = read_text(proc_root / str(pid) / "comm") or "?"
            found.append(Holder(pid, program, Path(path)))
    return tuple(found)


def _minor(bdf: Bdf, proc_root: Path) -> str | None:
    """Which /dev/nvidia<n> it is; None if the driver does not say, so that any counts."""
    told = read_text(proc_root / "driver/nvidia/gpus" / bdf / "information")
    match = _MINOR.search(told or "")
    return match[1] if match else None


def _pids(proc_root: Path) -> Iterator[int]:
    for entry in os.scandir(proc_root):
        if entry.name.isdigit():
            yield int(entry.name)


def _open_files(proc_root: Path, pid: int) -> Iterator[str]:
    """Targets of its descriptors; none of a process that is gone or not ours to look at."""
    folder = f"{proc_root}/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208 - of every process of the host
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")  # noqa: PTH115 - as above
        except OSError:
            continue
