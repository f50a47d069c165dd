"""Inventory: what looking at a whole board costs, and that looking for long costs no memory.

The trees are the tests' own, and so is the library: real is the reader, the process that asks the
library through the real binding, and everything after it.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

import psutil

from agent.host.clock import RealClock
from agent.host.kernel_log import KernelLog
from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.pci import PciReader
from agent.inventory.platform import PlatformProbe
from agent.inventory.watch import InventoryWatch
from agent.updates.admission.gpus import gpu_uses
from bench.deciding import decision_figures
from bench.figures import Bound, Figure, Table, median
from bench.options import Options
from bench.place import Place
from bench.show import Show
from simulator import sysfs_tree as trees
from simulator.memory_store import MemoryStore
from simulator.nvml import Nvml

INTERVAL_S = 5
REFRESHES = 5000
_ROUNDS = 200


async def measure(place: Place, options: Options, show: Show) -> Table:
    """8 GPUs and 4 switches; once given away, once with the nvidia driver and NVML."""
    del place, options
    root = Path(tempfile.mkdtemp(prefix="ea-inventory-"))
    try:
        return await _measure(root, show)
    finally:
        await asyncio.to_thread(shutil.rmtree, root)


async def _measure(root: Path, show: Show) -> Table:
    tree, nvml = trees.hgx_h100(root / "sys"), Nvml(root / "nvml")
    table = Table("inventory: 8 GPUs and 4 switches")
    reader = PciReader(tree.root)
    first = _spent(PciReader(tree.root))
    again = median([_spent(reader) for _ in range(_ROUNDS)])
    watch, probe = _watch(root, tree, nvml)
    try:
        given = await _refreshes(watch, probe)
        show.line(f"a refresh of a board that is given away: {given * 1000:.2f} ms of CPU")
        grown = await _growth(watch, show)
        for bus in trees.HGX_BUSES:
            bdf = f"0000:{bus:02x}:00.0"
            tree.bind(bdf, "nvidia")
            nvml.gpu(bdf)
        driven = await _refreshes(watch, probe)
    finally:
        await watch.close()
    percent = 100 / INTERVAL_S
    table.figures = [
        Figure("full PCI inventory, the first look", first * 1000, "ms", bound=Bound(10)),
        Figure("full PCI inventory, later looks", again * 1000, "ms", bound=Bound(10)),
        Figure("CPU at 5 s, all given away", given * percent, "% of a core", bound=Bound(0.5)),
        Figure("CPU at 5 s, all seen by NVML", driven * percent, "% of a core", bound=Bound(0.5)),
        Figure(f"growth over {REFRESHES} refreshes", grown / 1024, "KiB", bound=Bound(64)),
        *decision_figures(),
    ]
    table.notes = ["CPU includes the NVML process; its library is the tests' own and costs little"]
    return table


def _spent(reader: PciReader) -> float:
    began = time.thread_time()
    found = reader.read()
    assert len(found) == 12
    return time.thread_time() - began


def _watch(root: Path, tree: trees.SysfsTree, nvml: Nvml) -> tuple[InventoryWatch, NvmlProbe]:
    clock = RealClock()
    made: list[NvmlProbe] = []

    def probe(hear: object) -> NvmlProbe:
        made.append(NvmlProbe(str(nvml.library), clock, on_event=lambda _: None))
        return made[0]

    watch = InventoryWatch(
        MemoryStore(clock.now),
        clock,
        pci=PciReader(tree.root),
        platform=PlatformProbe(disk=root, sysfs_root=tree.root, cgroup_root=root / "cgroup"),
        nvml=probe,
        interval_s=INTERVAL_S,
        guest_metrics=lambda _: None,
        uses=gpu_uses,
        kernel=KernelLog,
    )
    return watch, made[0]


async def _refreshes(watch: InventoryWatch, probe: NvmlProbe) -> float:
    """Seconds of CPU a refresh, of this process and the NVML process."""
    for _ in range(5):
        await watch.refresh()
    before = time.process_time() + _child_cpu(probe)
    for _ in range(_ROUNDS):
        await watch.refresh()
    return (time.process_time() + _child_cpu(probe) - before) / _ROUNDS


def _child_cpu(probe: NvmlProbe) -> float:
    if probe.pid is None:
        return 0.0
    times = psutil.Process(probe.pid).cpu_times()
    return float(times.user + times.system)


async def _growth(watch: InventoryWatch, show: Show) -> int:
    tracemalloc.start()
    try:
        for _ in range(100):
            await watch.refresh()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for count in range(REFRESHES):
            await watch.refresh()
            if count % 1000 == 999:
                show.line(f"{count + 1} refreshes: {tracemalloc.get_traced_memory()[0]} bytes")
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
