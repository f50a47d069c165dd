"""The inventory as published: trees and the shim in, one list, rows and events out."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.port import GpuConditionError, UnknownGpuError
from agent.model.gpu import GpuState, HealthAction, Severity, Sight
from agent.model.ids import Bdf
from agent.model.preparation import GpuCondition
from agent.store.port import Store, StoreFullError
from agent.store.sqlite import SqliteStore
from simulator import sysfs_tree as trees
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from tests.fakes.failing_store import FailingStore
from tests.fakes.gpus import BDF, OTHER
from tests.fakes.kmsg import writing
from tests.fakes.watched_host import WatchedHost

FULL = StoreFullError("no space left")


Build = Callable[..., WatchedHost]


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Build]:
    made: list[WatchedHost] = []

    def make(
        tree: Callable[[Path], trees.SysfsTree] = trees.pcie_boards, store: Store | None = None
    ) -> WatchedHost:
        clock = ManualClock()
        kept = store or MemoryStore(clock.now)
        made.append(WatchedHost(tmp_path, tree(tmp_path / "sys"), kept, clock))
        return made[-1]

    yield make
    for one in made:
        await one.watch.close()


async def test_a_board_is_published_with_its_switches_apart(build: Build):
    inventory = await build(trees.hgx_h100).look()
    assert (len(inventory.gpus), len(inventory.switches), inventory.complete) == (8, 4, True)
    assert {gpu.state for gpu in inventory.gpus} == {GpuState.FREE}
    assert inventory.problems == ()


async def test_what_nvml_saw_is_known_when_a_guest_has_the_gpu_and_after_a_restart(
    build: Build, tmp_path: Path
):
    clock = ManualClock()
    store = await SqliteStore.open(tmp_path / "agent.db", clock.now)
    host = build(store=store)
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF, uuid="GPU-real", serial="777")
    await host.look()
    assert host.gpu().seen_by == (Sight.PCI, Sight.NVML)
    host.tree.bind(BDF, "vfio-pci")
    await host.own(BDF)
    host.metrics = {"gpu_util": 93, "gpu_mem_util": 60.5, "gpu_type": "H100", "gpu_mem_total": -1}
    await host.again()
    await host.look()
    gpu = host.gpu()
    assert (gpu.uuid, gpu.serial, gpu.state, gpu.owner) == (
        "GPU-real",
        "777",
        GpuState.IN_USE,
        "abcdefgh",
    )
    assert gpu.guest == {"utilization_percent": 93.0, "memory_used_gib": 60.5}
    assert gpu.temperature_c is None
    await host.watch.close()
    await store.close()


async def test_nothing_is_complete_until_nvml_was_asked_where_it_has_something_to_show(
    build: Build,
):
    host = build()
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF)
    host.nvml.function("nvmlInitWithFlags", "hang")
    await asyncio.wait_for(host.watch.start(), 5)  # does not wait for the driver
    assert host.watch.inventory is not None
    assert not host.watch.inventory.complete
    await host.again()
    host.tree.bind(BDF, "vfio-pci")
    await host.watch.start()
    assert host.watch.inventory.complete


async def test_a_hung_driver_degrades_to_pci_and_is_a_problem_until_it_answers(build: Build):
    host = build()
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF)
    await host.look()
    host.nvml.function("nvmlDeviceGetMemoryInfo", "hang")
    inventory = await host.look()
    assert inventory.complete
    told = [(one.code, one.severity) for one in inventory.problems]
    assert told == [("gpu_unhealthy", "error"), ("nvml_hung", "warning")]
    assert host.gpu().seen_by == (Sight.PCI,)
    assert (host.gpu().uuid, host.gpu().state) == ("GPU-0", GpuState.UNHEALTHY)
    assert host.gpu(OTHER).state is GpuState.FREE  # the driver does not have it
    host.nvml.function("nvmlDeviceGetMemoryInfo", None)
    host.clock.advance(10)
    for _ in range(3):
        inventory = await host.look()
    assert (inventory.problems, host.gpu().state) == ((), GpuState.FREE)


async def test_hot_removal_and_return_are_events_and_survive_a_restart(build: Build):
    host = build()
    await host.look()
    host.tree.remove(OTHER)
    inventory = await host.look()
    assert host.gpu(OTHER).state is GpuState.ABSENT
    assert [one.code for one in inventory.problems] == ["gpu_absent"]
    await host.again()
    await host.look()
    assert host.gpu(OTHER).state is GpuState.ABSENT
    port = (host.tree.devices / "0000:29:01.0").resolve()
    host.tree.add(port, OTHER, class_code=trees.GPU, device=trees.H100_PCIE)
    await host.look()
    assert host.gpu(OTHER).state is GpuState.FREE
    assert await host.told() == [
        (BDF, None, "present"),
        (OTHER, None, "present"),
        (OTHER, "present", "absent"),
        (OTHER, "absent", "present"),
    ]


async def test_nothing_is_written_while_nothing_happens(build: Build):
    clock = ManualClock()
    store = FailingStore(MemoryStore(clock.now))
    host = build(store=store)
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF)
    await host.look(2)
    before = store.commits
    host.nvml.gpu(BDF, temperature_c=70, volatile_corrected=12)
    await host.look(3)
    assert store.commits == before


async def test_what_cannot_be_kept_is_published_all_the_same_and_kept_later(build: Build):
    clock = ManualClock()
    store = FailingStore(MemoryStore(clock.now))
    host = build(store=store)
    store.fail_all(FULL)
    inventory = await host.look()
    assert len(inventory.gpus) == 2
    assert [(one.code, one.severity) for one in inventory.problems] == [("disk_full", "error")]
    store.fail_all(None)
    assert (await host.look()).problems == ()
    assert [event.to for event in await host.events()] == ["present", "present"]


async def test_an_event_of_the_driver_is_a_look_at_once(build: Build):
    host = build()
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF)
    await host.watch.start()
    async with asyncio.timeout(10):
        while not (host.watch.inventory and host.watch.inventory.complete):
            await host.watch.changed.beyond(host.watch.changed.count)
        host.nvml.event(BDF, 0x8, 79)
        while host.gpu().state is not GpuState.UNHEALTHY:
            await host.watch.changed.beyond(host.watch.changed.count)
    health = host.gpu().health
    assert (health.severity, health.action) == (Severity.ERROR, HealthAction.REBOOT)
    assert (BDF, "free", "unhealthy") in await host.told()


async def test_a_new_owner_is_shown_long_before_the_next_look(build: Build):
    host = build()
    await host.watch.start()
    async with asyncio.timeout(10):
        while not (host.watch.inventory and host.watch.inventory.complete):
            await host.watch.changed.beyond(host.watch.changed.count)
        await host.own(BDF)
        host.watch.look_soon()
        while host.gpu().state is not GpuState.IN_USE:
            await host.watch.changed.beyond(host.watch.changed.count)


async def test_what_the_kernel_says_of_the_port_above_a_gpu_is_a_look_at_once_and_kept(
    build: Build,
):
    host = build()
    await host.own(BDF)
    await host.watch.start()
    with writing(host.kmsg) as write:
        for text in (
            "vfio-pci 0000:18:00.0: enabling device (0140 -> 0142)",
            "pcieport 0000:17:01.0: DPC: containment event, status:0x1f01 source:0x0000",
            "pcieport 0000:98:01.0: DPC: containment event, status:0x1f01 source:0x0000",
        ):
            write(f"4,1,1,-;{text}\n".encode())
    async with asyncio.timeout(10):
        while host.gpu().health.severity is not Severity.ERROR:
            await host.watch.changed.beyond(host.watch.changed.count)
    health = host.gpu().health
    assert [reason.code for reason in health.reasons] == ["kernel_contained"]
    assert (host.gpu().state, health.action) == (GpuState.IN_USE, HealthAction.RESET)
    assert host.gpu(OTHER).health.severity is Severity.OK
    assert "containment event" in host.watch.inventory.problems[0].detail
    host.watch.was_reset(Bdf(BDF))
    assert host.gpu().health.severity is Severity.OK


async def test_what_the_kernel_says_of_what_is_taken_off_the_bus_is_no_news(build: Build):
    host = build()
    await host.watch.start()
    with host.watch.expecting((Bdf("0000:17:01.0"), Bdf(BDF))), writing(host.kmsg) as write:
        for text in (
            "pcieport 0000:17:01.0: DPC: containment event, status:0x1f01 source:0x0000",
            "pcieport 0000:17:01.0: pciehp: Slot(3): Card not present",
            "pcieport 0000:29:01.0: DPC: containment event, status:0x1f01 source:0x0000",
        ):
            write(f"3,1,1,-;{text}\n".encode())
        async with asyncio.timeout(10):
            while host.gpu(OTHER).health.severity is not Severity.ERROR:
                await host.watch.changed.beyond(host.watch.changed.count)
    assert host.gpu().health.severity is Severity.OK


async def test_what_a_reset_mends_is_mended_by_a_reset_alone(build: Build):
    host = build()
    await host.look()
    host.tree.fall_off(BDF)
    await host.look(2)
    assert host.gpu().state is GpuState.UNHEALTHY
    host.tree.put(BDF, "current_link_speed", "32.0 GT/s PCIe")
    host.tree.put(BDF, "current_link_width", "16")
    (host.tree.devices / BDF / "config").write_bytes(b"\xde\x10" + bytes(62))
    host.watch.was_reset(Bdf(BDF))
    await host.look()
    assert host.gpu().state is GpuState.FREE
    assert (await host.told())[-2:] == [(BDF, "free", "unhealthy"), (BDF, "unhealthy", "free")]


ALIVE = b"\xde\x10" + bytes(62)


async def preparing(host: WatchedHost, *, busy: bool) -> None:
    row = GpuCondition(bdf=Bdf(BDF), clean=not busy, busy=busy, since=host.clock.now())
    await host.store.transact(lambda tx: tx.put_gpu_condition(row))


async def test_a_gpu_that_is_being_reset_is_not_judged_by_what_the_bus_reads(build: Build):
    host = build()
    await host.look()
    await preparing(host, busy=True)
    (host.tree.devices / BDF / "config").write_bytes(b"\xff" * 64)
    await host.look(4)
    assert host.gpu().state is GpuState.PREPARING
    assert host.gpu().health.severity is Severity.OK
    (host.tree.devices / BDF / "config").write_bytes(ALIVE)
    await preparing(host, busy=False)
    await host.look()
    assert host.gpu().state is GpuState.FREE
    assert "unhealthy" not in {to for _, _, to in await host.told()}


async def test_what_is_dirty_is_reset_in_any_case_and_so_not_called_unhealthy(build: Build):
    """As after a death of the agent in a reset that goes on without it."""
    host = build()
    await host.look()
    row = GpuCondition(bdf=Bdf(BDF), clean=False, since=host.clock.now())
    await host.store.transact(lambda tx: tx.put_gpu_condition(row))
    (host.tree.devices / BDF / "config").write_bytes(b"\xff" * 64)
    await host.look(3)
    assert host.gpu().health.action is HealthAction.RESET
    assert host.gpu().state is GpuState.DIRTY
    await preparing(host, busy=False)  # clean, and it reads the same: that is what is wrong
    await host.look()
    assert host.gpu().state is GpuState.UNHEALTHY


async def test_a_reset_that_ends_in_the_middle_of_a_look_leaves_no_trace(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    """The bus was read while it went on; what is concluded from it comes after its end."""
    host = build()
    await host.look()
    asked = NvmlProbe.look

    async def look_late(probe: NvmlProbe, *arguments: Any) -> Any:
        (host.tree.devices / BDF / "config").write_bytes(ALIVE)
        await preparing(host, busy=False)
        host.watch.was_reset(Bdf(BDF))
        return await asked(probe, *arguments)

    monkeypatch.setattr(NvmlProbe, "look", look_late)
    for _ in range(4):
        await preparing(host, busy=True)
        (host.tree.devices / BDF / "config").write_bytes(b"\xff" * 64)
        await host.look()
        assert host.gpu().state is GpuState.FREE


async def test_a_quarantine_outlives_a_restart_and_a_renumbering_and_is_lifted_by_a_verb(
    build: Build,
):
    host = build()
    await host.look()
    await host.watch.quarantine(Bdf(BDF), "three launches failed", "agent")
    assert host.gpu().state is GpuState.QUARANTINED
    port = (host.tree.devices / "0000:17:01.0").resolve()
    host.tree.remove("0000:18:00.1")
    host.tree.remove(BDF)
    host.tree.add(port, "0000:19:00.0", class_code=trees.GPU, device=trees.H100_PCIE)
    await host.again()
    inventory = await host.look()
    assert host.gpu("0000:19:00.0").state is GpuState.QUARANTINED
    assert [one.code for one in inventory.problems] == ["gpu_quarantined"]
    assert "gpus release 0000:19:00.0" in inventory.problems[0].mend
    gpu = await host.watch.release(Bdf("0000:19:00.0"), "local:0")
    assert (gpu.state, gpu.quarantine) == (GpuState.FREE, None)
    assert (await host.look()).problems == ()
    event = next(one for one in await host.events() if one.to == "lifted")
    assert (event.kind, event.actor, event.reason) == (
        "gpu_quarantine",
        "local:0",
        "three launches failed",
    )


async def test_a_release_again_changes_nothing(build: Build):
    host = build()
    await host.look()
    before = await host.events()
    assert (await host.watch.release(Bdf(BDF), "local:0")).state is GpuState.FREE
    assert await host.events() == before


async def test_a_gpu_beyond_repair_is_quarantined_and_not_released(build: Build):
    host = build()
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF, remapped_rows="0 8 0 1")
    await host.look()
    assert host.gpu().state is GpuState.QUARANTINED
    host.tree.bind(BDF, "vfio-pci")
    await host.look(5)
    assert host.gpu().state is GpuState.QUARANTINED
    with pytest.raises(GpuConditionError, match="must be returned"):
        await host.watch.release(Bdf(BDF), "local:0")


async def test_an_absent_gpu_is_forgotten_by_a_release(build: Build):
    host = build()
    await host.look()
    host.tree.remove(OTHER)
    await host.look()
    assert (await host.watch.release(Bdf(OTHER), "local:0")).state is GpuState.ABSENT
    inventory = await host.look()
    assert [gpu.bdf for gpu in inventory.gpus] == [BDF]
    assert inventory.problems == ()


async def test_what_is_not_there_can_be_neither_quarantined_nor_released(build: Build):
    host = build()
    await host.look()
    for order in (
        host.watch.quarantine(Bdf("0000:ff:00.0"), "x", "y"),
        host.watch.release(Bdf("0000:ff:00.0"), "y"),
    ):
        with pytest.raises(UnknownGpuError):
            await order
    assert [event.to for event in await host.events()] == ["present", "present"]


async def test_a_quarantine_that_comes_during_a_look_is_not_lost(build: Build):
    host = build()
    await host.look()
    host.tree.remove(OTHER)  # the look has something to write
    await asyncio.gather(
        host.watch.refresh(), host.watch.quarantine(Bdf(BDF), "by hand", "local:0")
    )
    await host.look()
    assert host.gpu().state is GpuState.QUARANTINED


async def test_a_quarantine_that_could_not_be_kept_is_not_shown(build: Build):
    clock = ManualClock()
    store = FailingStore(MemoryStore(clock.now))
    host = build(store=store)
    await host.look()
    store.fail_all(FULL)
    with pytest.raises(StoreFullError):
        await host.watch.quarantine(Bdf(BDF), "by hand", "local:0")
    store.fail_all(None)
    await host.look()
    assert host.gpu().state is GpuState.FREE


async def test_a_bus_that_cannot_be_read_is_incomplete_and_what_was_seen_stays(build: Build):
    host = build()
    await host.look()
    (host.tree.root / "bus").rename(host.tree.root / "sub")
    inventory = await host.look()
    assert (inventory.complete, len(inventory.gpus)) == (False, 2)
    assert [one.code for one in inventory.problems] == ["inventory_unavailable"]
    await host.watch.quarantine(Bdf(BDF), "by hand", "local:0")
    assert not host.watch.inventory.complete  # an order is no look
    (host.tree.root / "sub").rename(host.tree.root / "bus")
    assert (await host.look()).complete


async def test_nothing_of_ours_holds_a_gpu_inside_released(build: Build):
    host = build()
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF)
    await host.look()
    async with host.watch.released():
        assert (await host.look()).problems == ()
        assert host.gpu().seen_by == (Sight.PCI,)
    await host.look()
    assert host.gpu().seen_by == (Sight.PCI, Sight.NVML)


async def test_the_end_does_not_wait_for_a_driver_that_hangs(build: Build):
    host = build()
    host.tree.bind(BDF, "nvidia")
    host.nvml.gpu(BDF)
    host.nvml.function("nvmlInitWithFlags", "hang")
    await host.watch.start()
    await asyncio.sleep(0.2)  # the process is there, and hangs
    async with asyncio.timeout(5):
        await host.watch.close()


async def test_a_refresh_of_a_whole_board_is_cheap_and_leaves_no_memory(build: Build):
    """At every five seconds, half a percent of a core is 25 ms."""
    host = build(trees.hgx_h100)
    await host.look(5)
    spent = []
    for _ in range(11):
        began = time.process_time()
        await host.watch.refresh()
        spent.append(time.process_time() - began)
    assert sorted(spent)[5] < 0.025

    tracemalloc.start()
    try:
        await host.look(10)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await host.look(50)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 16 * 1024
