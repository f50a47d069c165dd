"""The files through which a program can hold a device, and uses of it that no file shows.

What sysfs shows below a function has its node's name in `uevent` (Linux,
Documentation/ABI/testing/sysfs-uevent): cards and renderers of DRM, framebuffers, sound, I2C. The
NVIDIA driver's nodes are not there: their numbers are in /proc/driver/nvidia. A node that is for
all GPUs together (nvidiactl, nvidia-uvm, nvidia-modeset) holds none of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.inventory.pci_use import (
    display_of,
    mediated_devices,
    parts_in_use,
    virtual_functions,
)
from agent.inventory.preparation.functions import Function
from agent.inventory.sysfs import list_names, read_int, read_link_name, read_text

_MINOR = re.compile(r"^Device Minor:\s*(\d+)", re.MULTILINE)
_CAP_MINOR = re.compile(r"^DeviceFileMinor:\s*(\d+)", re.MULTILINE)
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NVIDIA_DEVICE = re.compile(r"/dev/nvidia\d+")
_SWITCH_DEVICE = re.compile(r"/dev/nvidia-nvswitch\d+")  # a fabric manager has all of them
_NODE_OF = {"drm": "/dev/dri/", "graphics": "/dev/", "sound": "/dev/snd/", "i2c-dev": "/dev/"}
_DEPTH = 4


class DeviceNodes(NamedTuple):
    """`nodes`: files; `any_gpu`, `any_switch`: it is not told which of the driver's is whose."""

    nodes: frozenset[str]
    entries: tuple[str, ...]
    any_gpu: bool = False
    any_switch: bool = False

    def touches(self, target: str) -> bool:
        """Whether whoever has this file open holds one of the devices."""
        whole = target.removesuffix(" (deleted)")
        at = whole.rfind("/dev/")  # of a chroot or a container its own /dev is meant
        name = whole[at:] if at > 0 else whole
        if name in self.nodes or (self.any_gpu and _NVIDIA_DEVICE.fullmatch(name)):
            return True
        if self.any_switch and _SWITCH_DEVICE.fullmatch(name):
            return True
        return any(entry in whole for entry in self.entries)


def nodes_of(functions: tuple[Function, ...], proc_root: Path) -> DeviceNodes:
    """Of all of them, and of their virtual functions and mediated devices."""
    nodes, any_gpu = set[str](), False
    paths = [one.path for one in functions]
    for one in functions:
        paths += [one.path.parent / bdf for bdf, _ in virtual_functions(str(one.path))]
        if one.driver == "nvidia":
            minor = _minor(proc_root, one.bdf)
            any_gpu |= minor is None
            nodes |= {f"/dev/nvidia{minor}", *_caps(proc_root, minor)} if minor else set()
    for path in paths:
        nodes |= {*_vfio_nodes(path), *_shown_below(path, 0)}
        for mediated in mediated_devices(str(path)):
            nodes |= set(_vfio_nodes(path / mediated))
    return DeviceNodes(
        nodes=frozenset(nodes),
        entries=tuple(f"/{path.name}/" for path in paths),
        any_gpu=any_gpu,
        any_switch=any(one.driver == "nvidia-nvswitch" for one in functions),
    )


def uses_of(function: Function, *, display: bool = True) -> tuple[str, ...]:
    """Its uses that are no open file. `display`: that the host shows a picture with it counts."""
    path = str(function.path)
    shows = display_of(path, read_int(f"{path}/class"), function.driver) if display else None
    return (*parts_in_use(path), *([f"the host: {shows}"] if shows else []))


def _vfio_nodes(path: Path) -> Iterator[str]:
    group = read_link_name(path / "iommu_group")
    if group:
        yield f"/dev/vfio/{group}"
        yield f"/dev/vfio/noiommu-{group}"
    yield from (f"/dev/vfio/devices/{name}" for name in list_names(path / "vfio-dev"))


def _shown_below(path: Path, depth: int) -> Iterator[str]:
    """Nodes of what hangs on a function; what is another function is not its."""
    for name in list_names(path):
        below = path / name
        if _BDF.fullmatch(name) or os.path.islink(below) or not below.is_dir():  # noqa: PTH114
            continue
        if path.name in _NODE_OF:
            yield f"{_NODE_OF[path.name]}{name}"
        if (below / "dev").exists():
            told = re.search(r"^DEVNAME=(.+)$", read_text(below / "uevent") or "", re.MULTILINE)
            if told:
                yield f"/dev/{told[1]}"
        if depth < _DEPTH:
            yield from _shown_below(below, depth + 1)


def _minor(proc_root: Path, bdf: str) -> str | None:
    """Which /dev/nvidia<n> it is; None if the driver does not say, so that any counts."""
    told = _MINOR.search(read_text(proc_root / "driver/nvidia/gpus" / bdf / "information") or "")
    return told[1] if told else None


def _caps(proc_root: Path, minor: str) -> Iterator[str]:
    """The nodes of its MIG instances. Those for all GPUs (mig/config, mig/monitor) are not its."""
    for folder, _, files in os.walk(proc_root / f"driver/nvidia/capabilities/gpu{minor}"):
        for name in files:
            if told := _CAP_MINOR.search(read_text(f"{folder}/{name}") or ""):
                yield f"/dev/nvidia-caps/nvidia-cap{told[1]}"
