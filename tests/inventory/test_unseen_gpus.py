"""What cannot be seen is not offered, and what can be seen stays: also after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.model.gpu import GpuState, HealthAction, Severity
from agent.model.ids import Bdf
from simulator import sysfs_tree as trees
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from tests.fakes.gpus import BDF, OTHER
from tests.fakes.kmsg import writing
from tests.fakes.watched_host import WatchedHost

Driven = Callable[..., WatchedHost]
FREE = (GpuState.FREE, Severity.OK)


@pytest.fixture
async def driven(tmp_path: Path) -> AsyncIterator[Driven]:
    """Cards that the nvidia driver has, and NVML shows."""
    made: list[WatchedHost] = []

    def make(count: int = 2) -> WatchedHost:
        clock = ManualClock()
        tree = trees.pcie_boards(tmp_path / "sys", count)
        host = WatchedHost(tmp_path, tree, MemoryStore(clock.now), clock)
        for bus in trees.HGX_BUSES[:count]:
            host.tree.bind(f"0000:{bus:02x}:00.0", "nvidia")
            host.nvml.gpu(f"0000:{bus:02x}:00.0", fabric=None, nvlinks="12 0")
        made.append(host)
        return host

    yield make
    for one in made:
        await one.watch.close()


def standing(host: WatchedHost, bdf: str = BDF) -> tuple[GpuState, Severity]:
    gpu = host.gpu(bdf)
    return gpu.state, gpu.health.severity


@pytest.mark.parametrize(
    ("error", "action"),
    [(15, HealthAction.REBOOT), (999, HealthAction.RESET), (8, HealthAction.WATCH)],
)
async def test_a_gpu_refused_at_its_handle_is_not_offered_and_the_rest_is(
    driven: Driven, error: int, action: HealthAction
):
    host = driven()
    host.nvml.gpu(BDF, handle=error)
    inventory = await host.look()
    assert (host.gpu().state, host.gpu().health.action) == (GpuState.UNHEALTHY, action)
    assert inventory.complete
    assert standing(host, OTHER) == FREE
    assert host.gpu(OTHER).temperature_c == 33
    await host.again()
    inventory = await host.look()  # the first look of the new agent is enough
    assert (host.gpu().state, inventory.complete) == (GpuState.UNHEALTHY, True)


async def test_a_gpu_that_the_driver_loses_stays_lost_over_a_restart(driven: Driven):
    host = driven()
    await host.look(2)
    assert standing(host) == FREE
    host.nvml.gpu(BDF, error=15)
    await host.look()
    assert host.gpu().state is GpuState.UNHEALTHY
    host.nvml.gpu(BDF, handle=15)
    await host.again()
    await host.look()
    assert [reason.code for reason in host.gpu().health.reasons] == ["gpu_lost"]


async def test_a_gpu_that_the_driver_does_not_list_any_more_is_not_offered(driven: Driven):
    host = driven()
    host.nvml.lost(OTHER)
    await host.look(2)
    assert [reason.code for reason in host.gpu(OTHER).health.reasons] == ["nvml_unseen"]
    assert host.gpu(OTHER).state is GpuState.UNHEALTHY
    assert standing(host) == FREE


@pytest.mark.parametrize("what", ["temperature_c", "uuid", "fabric", "remapped_rows"])
async def test_a_call_that_hangs_takes_out_its_gpu_and_no_other(driven: Driven, what: str):
    host = driven(3)
    await host.look()
    host.nvml.gpu(OTHER, hang=what)
    inventory = await host.look()
    assert inventory.complete
    (reason,) = host.gpu(OTHER).health.reasons
    assert (reason.code, host.gpu(OTHER).state) == ("nvml_hung", GpuState.UNHEALTHY)
    assert host.gpu(OTHER).uuid == "GPU-1"  # who it is stays known
    for bdf in (BDF, f"0000:{trees.HGX_BUSES[2]:02x}:00.0"):
        assert standing(host, bdf) == FREE
        assert host.gpu(bdf).temperature_c == 33
    host.nvml.gpu(OTHER, hang=None)
    host.clock.advance(10)
    await host.look(3)
    assert standing(host, OTHER) == FREE


async def test_a_gpu_that_hangs_is_still_known_while_another_is_being_bound(driven: Driven):
    host = driven()
    await host.look()
    host.nvml.gpu(OTHER, hang="temperature_c")
    await host.look()
    async with host.watch.released():
        await host.look(4)
        assert host.gpu(OTHER).state is GpuState.UNHEALTHY


async def test_a_gpu_that_hung_is_taken_for_another_once_the_driver_lets_it_go(driven: Driven):
    host = driven()
    await host.look()
    host.nvml.gpu(OTHER, hang="temperature_c")
    await host.look()
    host.tree.bind(OTHER, "vfio-pci")
    host.watch.was_reset(Bdf(OTHER))
    await host.look()
    assert standing(host, OTHER) == FREE


async def test_a_gpu_of_which_every_call_fails_is_not_offered(driven: Driven):
    host = driven()
    host.nvml.gpu(BDF, error=999)
    await host.look()
    assert [reason.code for reason in host.gpu().health.reasons] == ["nvml_mute"]
    assert host.gpu().state is GpuState.UNHEALTHY
    assert standing(host, OTHER) == FREE


@pytest.mark.parametrize(
    "lines",
    [
        ["0x92000000 0x92ffffff 0x40200"],
        ["0x92000000 0x92ffffff 0x14220c", "0x0 0x0 0x0", "0x0 0x1fffffffff 0x2014220c"],
        [],
    ],
)
async def test_a_gpu_without_its_address_space_is_not_offered(driven: Driven, lines: list[str]):
    host = driven()
    host.tree.put(OTHER, "resource", "\n".join([*lines, *["0x0 0x0 0x0"] * (7 - len(lines))]))
    inventory = await host.look()
    assert host.gpu(OTHER).state is GpuState.UNHEALTHY
    (problem,) = inventory.problems
    assert "above-4G decoding" in problem.detail
    assert standing(host) == FREE


async def test_a_whole_board_is_told_of_links_that_are_down(tmp_path: Path):
    clock = ManualClock()
    tree = trees.hgx_h100(tmp_path / "sys", driver="nvidia")
    host = WatchedHost(tmp_path, tree, MemoryStore(clock.now), clock)
    for bus in trees.HGX_BUSES:
        host.nvml.gpu(f"0000:{bus:02x}:00.0")
    host.nvml.gpu(BDF, nvlinks="18 17")
    inventory = await host.look(3)
    assert [one.key for one in inventory.problems] == [f"gpu_unhealthy:{BDF}"]
    assert host.gpu().state is GpuState.FREE  # alone it may be given
    assert standing(host, OTHER) == FREE
    await host.watch.close()


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("NVRM: Xid (PCI:0000:18:00): 119, pid=9, Timeout waiting for RPC", GpuState.UNHEALTHY),
        ("NVRM: GPU 0000:18:00.0: RmInitAdapter failed! (0x62:0x40:1)", GpuState.UNHEALTHY),
        ("nvidia 0000:18:00.0: not ready 65535ms after FLR; giving up", GpuState.UNHEALTHY),
        ("NVRM: Xid (PCI:0000:18:00): 160, 0x1", GpuState.FREE),
        ("NVRM: Xid (PCI:0000:18:00): 9999, unheard of", GpuState.FREE),
    ],
)
async def test_what_the_kernel_says_is_heard_while_nvml_hangs(
    driven: Driven, line: str, state: GpuState
):
    host = driven()
    await host.watch.start()
    await host.look()
    with writing(host.kmsg) as write:
        write(f"3,1,2,-;{line}\n".encode())
        await _until(lambda: host.watch._records.health()[Bdf(BDF)].reasons)
    await host.look()
    assert host.gpu().state is state
    assert host.gpu().health.reasons
    assert standing(host, OTHER) == FREE


async def _until(holds: Callable[[], Any]) -> None:
    import asyncio

    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.001)
