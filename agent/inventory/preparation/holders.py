"""Who uses a device: found before it is unbound or reset, which would hang or break them.

Programs may come and go while this looks; it is asked again whenever it matters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from agent.inventory.preparation.device_nodes import nodes_of, uses_of
from agent.inventory.preparation.errors import Holder
from agent.inventory.preparation.functions import Function
from agent.inventory.sysfs import read_text
from agent.model.gpu_held import held_by
from agent.model.ids import Bdf
from agent.model.iommu_group import DEVICES

_UNIT = re.compile(r".+\.(?:service|scope)")
# Programs that watch GPUs and use none, by the 15 characters that the kernel keeps of a name.
_OBSERVERS = frozenset(
    name[:15]
    for name in (
        *("nvidia-persistenced", "nv-hostengine", "dcgm-exporter", "dcgmi", "dcgm"),
        *("nv-fabricmanager", "nvidia-smi", "nvtop", "nvsm_core", "nvidia_gpu_exporter"),
        *("gpu-feature-discovery", "nvidia-device-plugin", "nvidia-powerd"),
    )
)


def find_holders(
    functions: Collection[Function],
    proc_root: Path = Path("/proc"),
    *,
    gives_display: Callable[[Bdf], bool] = lambda _: False,
) -> tuple[Holder, ...]:
    """Everybody, ours included, who uses one of these. Walks all of /proc: blocks.

    `gives_display`: that it drives a display of the host's is no matter.
    """
    devices = nodes_of(tuple(functions), proc_root)
    found = [
        Holder(0, what, one.path)
        for one in functions
        for what in _held_by(one, display=not gives_display(one.bdf))
    ]
    for pid in _pids(proc_root):
        path = next((one for one in _open_files(proc_root, pid) if devices.touches(one)), None)
        if path is not None:
            program = read_text(proc_root / str(pid) / "comm") or "?"
            unit = _unit_of(proc_root, pid)
            found.append(Holder(pid, program, Path(path), unit, program[:15] in _OBSERVERS))
    return tuple(found)


def _held_by(one: Function, *, display: bool) -> tuple[str, ...]:
    """Who has it without a file. A function beside a GPU may have any driver: it goes with it."""
    driver = one.driver if one.kind in DEVICES else None
    return held_by(driver, uses_of(one, display=display))


def _unit_of(proc_root: Path, pid: int) -> str | None:
    """The innermost unit of systemd that it is in (`/proc/<pid>/cgroup`)."""
    lines = (read_text(proc_root / str(pid) / "cgroup") or "").splitlines()
    paths = [line.split(":", 2)[2] for line in lines if line.startswith(("0::", "1:name=systemd"))]
    parts = [part for path in paths for part in path.split("/") if _UNIT.fullmatch(part)]
    return parts[-1] if parts else None


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
