"""An idle agent leaves every host as it is: an hour of it on each of the simulated hosts.

The parts are the daemon's own. The kernel that is behind the tree keeps a log of what is written
and of what the operator's tool does; the tree itself shows what went by without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from agent.capacity.boards import boards_of
from agent.capacity.groups import legal_sizes
from agent.config import Config, HostConfig, InventoryConfig
from agent.daemon.gpus import gpus_of, preparer_of
from agent.inventory.preparation.records import mark_used
from agent.inventory.watch import InventoryWatch
from agent.model.gpu import HOST, GpuState
from agent.model.ids import Bdf, EnclaveId
from agent.model.inventory import Inventory
from agent.store.port import Reader, Transaction
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.nvml import Nvml
from simulator.pci_kernel import PciKernel
from simulator.profiles import PROFILES, Profile

T = TypeVar("T")
HOUR_S, ROUND_S, LOOK_S = 3600, 10, 300  # between looks of the preparer, and of the inventory


class CountingStore(MemoryStore):
    """Counts the questions, so that an agent that does nothing at all is not taken for idle."""

    reads = 0

    async def read(self, work: Callable[[Reader], T]) -> T:
        self.reads += 1
        return await super().read(work)


class IdleHost:
    """A host of that profile as it is after its boot, and the daemon's hands and eyes on it."""

    def __init__(self, root: Path, profile: Profile) -> None:
        self.tree = profile.tree(root / "sys")
        for bdf, driver in profile.drivers(self.tree):
            self.tree.bind(bdf, driver)
        nvml = Nvml(root / "nvml")
        for bdf, told in profile.gpus(self.tree):
            nvml.gpu(bdf, **told)
        self.kernel = PciKernel(self.tree)
        for path in self.tree.devices.iterdir():
            self.kernel.in_mode(path.name)
        tool = root / "nvidia_gpu_tools.py"
        tool.write_text("#!/bin/false\n")
        tool.chmod(0o755)
        self.clock = ManualClock()
        self.store = CountingStore(self.clock.now)
        self.config = Config(
            state_dir=root,
            host=HostConfig(
                sysfs_root=self.tree.root,
                cgroup_root=root / "cgroup",
                nvml_library=str(nvml.library),
                gpu_tools=str(tool),
            ),
            inventory=InventoryConfig(interval_s=LOOK_S),
        )

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Callable[[], Any]]:
        """A daemon's inventory and preparer, at work; yields what has the newest inventory."""
        nobody: Any = SimpleNamespace(view=lambda _: None)
        watch: InventoryWatch = gpus_of(
            self.config, self.clock, self.store, nobody, in_units=False
        )
        preparer = preparer_of(
            self.config, self.clock, self.store, watch, confidential=True, run=self.kernel.run
        )
        await watch.refresh()
        await preparer.start()
        keeping = asyncio.create_task(preparer.keep())
        self.watch, self.preparer = watch, preparer
        try:
            yield lambda: watch.inventory
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await watch.close()

    async def pass_time(self, seconds: int) -> None:
        """As it goes by in the daemon: a look of the preparer every few seconds, one at the host
        now and then."""
        for second in range(ROUND_S, seconds + 1, ROUND_S):
            self.clock.advance(ROUND_S)
            self.preparer.look_again()
            await asyncio.sleep(0)
            if second % LOOK_S == 0:
                await self.watch.refresh()

    def files(self) -> dict[str, str | bytes]:
        """Everything that the tree has, links by where they point."""
        return {
            str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in self.tree.root.rglob("*")
            if path.is_symlink() or path.is_file()
        }


@dataclass(frozen=True)
class Seen:
    """What an agent sees of a host. `sizes`: of groups for confidential guests."""

    gpus: int
    switches: int = 0
    held: int = 0
    sizes: frozenset[int] = frozenset()


EXPECTED = {
    "hgx-h100": Seen(8, 4, sizes=frozenset({1, 8})),
    "hgx-h800": Seen(8, 4, sizes=frozenset({1, 8})),
    "hgx-b200": Seen(8, sizes=frozenset({1, 8})),
    "2xh100-pcie": Seen(2, sizes=frozenset({1})),
    "h200-nvl-2x-bridge": Seen(2, sizes=frozenset({1})),
    "rtx-pro-6000-4x": Seen(4, sizes=frozenset({1})),
    "display-and-h100": Seen(2, held=1, sizes=frozenset({1})),
    "l40s-virtual-functions": Seen(2, held=1, sizes=frozenset({1})),
    "cpu-only": Seen(0),
}


def seen(inventory: Inventory) -> Seen:
    every = (*inventory.gpus, *inventory.switches)
    held = [gpu for gpu in inventory.gpus if gpu.owner == HOST]
    assert {gpu.state for gpu in held} <= {GpuState.IN_USE}
    assert {gpu.state for gpu in every if gpu not in held} <= {GpuState.FREE}
    return Seen(
        gpus=len(inventory.gpus),
        switches=len(inventory.switches),
        held=len(held),
        sizes=frozenset(legal_sizes(boards_of(every, sizes=None, confidential=True))),
    )


@pytest.mark.parametrize("name", PROFILES)
async def test_an_hour_of_an_idle_agent_writes_to_no_device(name: str, tmp_path: Path) -> None:
    host = IdleHost(tmp_path, PROFILES[name])
    before = host.files()
    async with host.agent() as inventory:
        assert seen(inventory()) == EXPECTED[name]
        await host.pass_time(HOUR_S // 2)
    async with host.agent() as inventory:  # it was restarted
        await host.pass_time(HOUR_S // 2)
        assert seen(inventory()) == EXPECTED[name]
    assert host.store.reads > HOUR_S / ROUND_S
    assert host.kernel.log == []
    assert host.files() == before


async def test_the_kernel_of_that_hour_would_have_told(tmp_path: Path) -> None:
    """The same hour, but for one GPU that an enclave has left."""
    host = IdleHost(tmp_path, PROFILES["h200-nvl-2x-bridge"])
    before = host.files()
    async with host.agent() as inventory:
        left = Bdf(inventory().gpus[0].bdf)

        def leave(tx: Transaction) -> None:
            mark_used(tx, [left], EnclaveId("aaaaaaaa"), host.clock.now())

        await host.store.transact(leave)
        await host.pass_time(HOUR_S)
    assert f"reset {left}" in host.kernel.log
    assert not [line for line in host.kernel.log if inventory().gpus[1].bdf in line]
    assert host.files() != before
