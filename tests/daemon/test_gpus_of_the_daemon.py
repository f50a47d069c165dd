"""The real daemon on a host with GPUs: a tree, and the shim behind the real binding."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from simulator import sysfs_tree as trees
from simulator.nvml import Nvml, alive
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.gpus import BDF, OTHER


class GpuHostUnderTest:
    """A daemon, its host's tree and NVML's library."""

    def __init__(self, tmp_path: Path) -> None:
        self.tree = trees.hgx_h100(tmp_path / "sys")
        self.nvml = Nvml(tmp_path / "nvml")
        host = {
            "sysfs_root": str(self.tree.root),
            "nvml_library": str(self.nvml.library),
            "vcpus": 8,
        }
        (tmp_path / "releases").mkdir()
        self.daemon = Daemon(
            place(),
            tmp_path / "releases",
            settings={"host": host, "inventory": {"interval_s": 0.3}},
        )

    async def inventory(self, until: Callable[[Any], bool]) -> Any:
        """The published one, once it is so."""
        async with asyncio.timeout(30):
            while not until(shown := (await self.daemon.get("/v1/inventory")).body):
                await asyncio.sleep(0.05)
        return shown

    async def gpu(self, until: Callable[[Any], bool], bdf: str = BDF) -> Any:
        def find(shown: Any) -> Any:
            return next(one for one in shown["gpus"] if one["bdf"] == bdf)

        return find(await self.inventory(lambda shown: until(find(shown))))

    def nvml_process(self) -> int | None:
        children = psutil.Process(self.daemon.pid).children()
        found = [one.pid for one in children if "agent.inventory.nvml.child" in one.cmdline()]
        assert len(found) <= 1
        return found[0] if found else None


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[GpuHostUnderTest]:
    made = GpuHostUnderTest(tmp_path)
    yield made
    await made.daemon.leave()


async def test_gpus_are_known_over_drivers_and_a_kill_of_the_agent_while_a_call_hangs(
    host: GpuHostUnderTest,
):
    daemon = host.daemon
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF, uuid="GPU-real")
    await daemon.up()
    await host.gpu(lambda gpu: gpu["seen_by"] == ["pci", "nvml"])
    status = (await daemon.get("/status")).body
    assert (status["gpus"]["total"], status["gpus"]["free"]) == (8, 8)
    assert status["host"]["inventory_complete"]

    # killed while a call of the driver hangs: the process that makes it ends too
    child = host.nvml_process()
    assert child is not None
    host.nvml.function("nvmlDeviceGetMemoryInfo", "hang")
    await asyncio.sleep(1.5)  # longer than until the next look
    daemon.kill()
    async with asyncio.timeout(10):
        while alive(child):
            await asyncio.sleep(0.02)

    # and given away meanwhile: who it is, is remembered
    host.tree.bind(BDF, "vfio-pci")
    host.tree.remove(OTHER)
    await daemon.up()
    gpu = await host.gpu(lambda gpu: gpu["driver"] == "vfio-pci")
    assert (gpu["uuid"], gpu["seen_by"], gpu["temperature_c"]) == ("GPU-real", ["pci"], None)
    assert host.nvml_process() is None
    absent = await host.gpu(lambda gpu: gpu["state"] == "absent", OTHER)
    assert absent["seen_by"] == []
    assert (await daemon.get("/status")).body["gpus"]["total"] == 7
    daemon.stop()


async def test_an_xid_makes_a_gpu_unfit_and_a_quarantine_outlives_a_kill(host: GpuHostUnderTest):
    daemon = host.daemon
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF)
    await daemon.up()
    await host.gpu(lambda gpu: gpu["seen_by"] == ["pci", "nvml"])
    host.nvml.event(BDF, 0x8, 95)
    gpu = await host.gpu(lambda gpu: gpu["state"] == "unhealthy")
    assert gpu["health"]["action"] == "reset"
    host.nvml.gpu(BDF, remapped_rows="0 8 0 1")
    await host.gpu(lambda gpu: gpu["state"] == "quarantined")
    daemon.kill()
    host.nvml.gpu(BDF, remapped_rows="0 8 0 0")
    host.nvml.no_events()
    await daemon.up()
    gpu = await host.gpu(lambda gpu: gpu["seen_by"] == ["pci", "nvml"])
    assert gpu["state"] == "quarantined"
    answer = await daemon.send("POST", f"/v1/gpus/{BDF}/release")
    assert (answer.status, answer.body["state"]) == (200, "free")
    events = (await daemon.get("/v1/events")).body["events"]
    told = [(one["from"], one["to"]) for one in events if one["gpu"] == BDF]
    assert told == [
        (None, "present"),
        ("free", "unhealthy"),
        ("unhealthy", "quarantined"),
        (None, "lifted"),
        ("quarantined", "free"),
    ]
    daemon.stop()
