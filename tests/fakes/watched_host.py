"""A host of a tree, NVML and a kernel's log, and the inventory's watch over it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agent.host.kernel_log import KernelLog
from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.pci import PciReader
from agent.inventory.platform import PlatformProbe
from agent.inventory.watch import InventoryWatch
from agent.model.event import Event
from agent.model.gpu import Gpu
from agent.model.ids import Bdf
from agent.model.inventory import Inventory
from agent.model.lease import Claim, ClaimKind
from agent.store.port import Store
from agent.updates.admission.gpus import gpu_uses
from simulator import sysfs_tree as trees
from simulator.manual_clock import ManualClock
from simulator.nvml import Nvml
from simulator.rows import deployment, enclave
from tests.fakes.gpus import BDF


class WatchedHost:
    """A host, its agent's store, and a watch that can be begun again."""

    def __init__(self, root: Path, tree: trees.SysfsTree, store: Store, clock: ManualClock):
        self.root, self.tree, self.store, self.clock = root, tree, store, clock
        self.nvml = Nvml(root / "nvml")
        self.kmsg = root / "kmsg"
        os.mkfifo(self.kmsg)
        self.metrics: dict[str, Any] | None = None
        self.watch = self._watch()

    def _watch(self) -> InventoryWatch:
        library = str(self.nvml.library)
        return InventoryWatch(
            self.store,
            self.clock,
            pci=PciReader(self.tree.root),
            platform=PlatformProbe(
                disk=self.root, sysfs_root=self.tree.root, cgroup_root=self.root / "cgroup"
            ),
            nvml=lambda hear: NvmlProbe(library, self.clock, on_event=hear, look_s=0.5),
            interval_s=60,
            guest_metrics=lambda _: self.metrics,
            uses=gpu_uses,
            kernel=lambda hear: KernelLog(hear, self.kmsg),
        )

    async def again(self) -> None:
        """The agent is restarted."""
        await self.watch.close()
        self.watch = self._watch()

    async def look(self, times: int = 1) -> Inventory:
        for _ in range(times):
            await self.watch.refresh()
        inventory = self.watch.inventory
        assert inventory is not None
        return inventory

    def gpu(self, bdf: str = BDF) -> Gpu:
        inventory = self.watch.inventory
        assert inventory is not None
        gpu = inventory.gpu(Bdf(bdf))
        assert gpu is not None
        return gpu

    async def events(self) -> list[Event]:
        return await self.store.read(lambda tx: tx.events(0))

    async def told(self) -> list[tuple[str | None, str | None, str | None]]:
        return [(one.gpu, one.from_, one.to) for one in await self.events()]

    async def own(self, *bdfs: str) -> None:
        """An enclave holds them."""

        def work(tx: Any) -> None:
            tx.put_deployment(deployment())
            tx.put_enclave(enclave("abcdefgh"))
            for bdf in bdfs:
                tx.claim(Claim(kind=ClaimKind.GPU, key=bdf, holder="abcdefgh"))

        await self.store.transact(work)
