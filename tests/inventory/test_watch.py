"""The inventory as published: trees and the shim in, one list, rows and events out."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.host.clock import ManualClock
from agent.host.kernel_log import KernelLog
from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.pci import PciReader
from agent.inventory.platform import PlatformProbe
from agent.inventory.port import GpuConditionError, UnknownGpuError
from agent.inventory.watch import InventoryWatch
from agent.model.event import Event
from agent.model.gpu import Gpu, GpuState, HealthAction, Severity, Sight
from agent.model.ids import Bdf
from agent.model.inventory import Inventory
from agent.model.lease import Claim, ClaimKind
from agent.model.preparation import GpuCondition
from agent.store.memory import MemoryStore
from agent.store.port import Store, StoreFullError
from agent.store.sqlite import SqliteStore
from agent.updates.admission.gpus import gpu_uses
from tests.fakes import sysfs_tree as trees
from tests.fakes.failing_store import FailingStore
from tests.fakes.gpus import BDF, OTHER
from tests.fakes.kmsg import writing
from tests.fakes.nvml import Nvml
from tests.fakes.rows import deployment, enclave

FULL = StoreFullError("no space left")


class House:
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


Build = Callable[..., House]


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[Build]:
    made: list[House] = []

    def make(
        tree: Callable[[Path], trees.SysfsTree] = trees.pcie_boards, store: Store | None = None
    ) -> House:
        clock = ManualClock()
        kept = store or MemoryStore(clock.now)
        made.append(House(tmp_path, tree(tmp_path / "sys"), kept, clock))
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
    house = build(store=store)
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF, uuid="GPU-real", serial="777")
    await house.look()
    assert house.gpu().seen_by == (Sight.PCI, Sight.NVML)
    house.tree.bind(BDF, "vfio-pci")
    await house.own(BDF)
    house.metrics = {"gpu_util": 93, "gpu_mem_util": 60.5, "gpu_type": "H100", "gpu_mem_total": -1}
    await house.again()
    await house.look()
    gpu = house.gpu()
    assert (gpu.uuid, gpu.serial, gpu.state, gpu.owner) == (
        "GPU-real",
        "777",
        GpuState.IN_USE,
        "abcdefgh",
    )
    assert gpu.guest == {"utilization_percent": 93.0, "memory_used_gib": 60.5}
    assert gpu.temperature_c is None
    await house.watch.close()
    await store.close()


async def test_nothing_is_complete_until_nvml_was_asked_where_it_has_something_to_show(
    build: Build,
):
    house = build()
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF)
    house.nvml.function("nvmlInitWithFlags", "hang")
    await asyncio.wait_for(house.watch.start(), 5)  # does not wait for the driver
    assert house.watch.inventory is not None
    assert not house.watch.inventory.complete
    await house.again()
    house.tree.bind(BDF, "vfio-pci")
    await house.watch.start()
    assert house.watch.inventory.complete


async def test_a_hung_driver_degrades_to_pci_and_is_a_problem_until_it_answers(build: Build):
    house = build()
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF)
    await house.look()
    house.nvml.function("nvmlDeviceGetMemoryInfo", "hang")
    inventory = await house.look()
    assert inventory.complete
    assert [(one.code, one.severity) for one in inventory.problems] == [("nvml_hung", "warning")]
    assert house.gpu().seen_by == (Sight.PCI,)
    assert house.gpu().uuid == "GPU-0"
    house.nvml.function("nvmlDeviceGetMemoryInfo", None)
    house.clock.advance(10)
    assert (await house.look()).problems == ()


async def test_hot_removal_and_return_are_events_and_survive_a_restart(build: Build):
    house = build()
    await house.look()
    house.tree.remove(OTHER)
    inventory = await house.look()
    assert house.gpu(OTHER).state is GpuState.ABSENT
    assert [one.code for one in inventory.problems] == ["gpu_absent"]
    await house.again()
    await house.look()
    assert house.gpu(OTHER).state is GpuState.ABSENT
    port = (house.tree.devices / "0000:29:01.0").resolve()
    house.tree.add(port, OTHER, class_code=trees.GPU, device=trees.H100_PCIE)
    await house.look()
    assert house.gpu(OTHER).state is GpuState.FREE
    assert await house.told() == [
        (BDF, None, "present"),
        (OTHER, None, "present"),
        (OTHER, "present", "absent"),
        (OTHER, "absent", "present"),
    ]


async def test_nothing_is_written_while_nothing_happens(build: Build):
    clock = ManualClock()
    store = FailingStore(MemoryStore(clock.now))
    house = build(store=store)
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF)
    await house.look(2)
    before = store.commits
    house.nvml.gpu(BDF, temperature_c=70, volatile_corrected=12)
    await house.look(3)
    assert store.commits == before


async def test_what_cannot_be_kept_is_published_all_the_same_and_kept_later(build: Build):
    clock = ManualClock()
    store = FailingStore(MemoryStore(clock.now))
    house = build(store=store)
    store.fail_all(FULL)
    inventory = await house.look()
    assert len(inventory.gpus) == 2
    assert [(one.code, one.severity) for one in inventory.problems] == [("disk_full", "error")]
    store.fail_all(None)
    assert (await house.look()).problems == ()
    assert [event.to for event in await house.events()] == ["present", "present"]


async def test_an_event_of_the_driver_is_a_look_at_once(build: Build):
    house = build()
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF)
    await house.watch.start()
    async with asyncio.timeout(10):
        while not (house.watch.inventory and house.watch.inventory.complete):
            await house.watch.changed.beyond(house.watch.changed.count)
        house.nvml.event(BDF, 0x8, 79)
        while house.gpu().state is not GpuState.UNHEALTHY:
            await house.watch.changed.beyond(house.watch.changed.count)
    health = house.gpu().health
    assert (health.severity, health.action) == (Severity.ERROR, HealthAction.REBOOT)
    assert (BDF, "free", "unhealthy") in await house.told()


async def test_a_new_owner_is_shown_long_before_the_next_look(build: Build):
    house = build()
    await house.watch.start()
    async with asyncio.timeout(10):
        while not (house.watch.inventory and house.watch.inventory.complete):
            await house.watch.changed.beyond(house.watch.changed.count)
        await house.own(BDF)
        house.watch.look_soon()
        while house.gpu().state is not GpuState.IN_USE:
            await house.watch.changed.beyond(house.watch.changed.count)


async def test_what_the_kernel_says_of_the_port_above_a_gpu_is_a_look_at_once_and_kept(
    build: Build,
):
    house = build()
    await house.own(BDF)
    await house.watch.start()
    with writing(house.kmsg) as write:
        for text in (
            "vfio-pci 0000:18:00.0: enabling device (0140 -> 0142)",
            "pcieport 0000:17:01.0: DPC: containment event, status:0x1f01 source:0x0000",
            "pcieport 0000:98:01.0: DPC: containment event, status:0x1f01 source:0x0000",
        ):
            write(f"4,1,1,-;{text}\n".encode())
    async with asyncio.timeout(10):
        while house.gpu().health.severity is not Severity.ERROR:
            await house.watch.changed.beyond(house.watch.changed.count)
    health = house.gpu().health
    assert [reason.code for reason in health.reasons] == ["kernel_contained"]
    assert (house.gpu().state, health.action) == (GpuState.IN_USE, HealthAction.RESET)
    assert house.gpu(OTHER).health.severity is Severity.OK
    assert "containment event" in house.watch.inventory.problems[0].detail
    house.watch.was_reset(Bdf(BDF))
    assert house.gpu().health.severity is Severity.OK


async def test_what_a_reset_mends_is_mended_by_a_reset_alone(build: Build):
    house = build()
    await house.look()
    house.tree.fall_off(BDF)
    await house.look(2)
    assert house.gpu().state is GpuState.UNHEALTHY
    house.tree.put(BDF, "current_link_speed", "32.0 GT/s PCIe")
    house.tree.put(BDF, "current_link_width", "16")
    (house.tree.devices / BDF / "config").write_bytes(b"\xde\x10" + bytes(62))
    house.watch.was_reset(Bdf(BDF))
    await house.look()
    assert house.gpu().state is GpuState.FREE
    assert (await house.told())[-2:] == [(BDF, "free", "unhealthy"), (BDF, "unhealthy", "free")]


ALIVE = b"\xde\x10" + bytes(62)


async def preparing(house: House, *, busy: bool) -> None:
    row = GpuCondition(bdf=Bdf(BDF), clean=not busy, busy=busy, since=house.clock.now())
    await house.store.transact(lambda tx: tx.put_gpu_condition(row))


async def test_a_gpu_that_is_being_reset_is_not_judged_by_what_the_bus_reads(build: Build):
    house = build()
    await house.look()
    await preparing(house, busy=True)
    (house.tree.devices / BDF / "config").write_bytes(b"\xff" * 64)
    await house.look(4)
    assert house.gpu().state is GpuState.PREPARING
    assert house.gpu().health.severity is Severity.OK
    (house.tree.devices / BDF / "config").write_bytes(ALIVE)
    await preparing(house, busy=False)
    await house.look()
    assert house.gpu().state is GpuState.FREE
    assert "unhealthy" not in {to for _, _, to in await house.told()}


async def test_what_is_dirty_is_reset_in_any_case_and_so_not_called_unhealthy(build: Build):
    """As after a death of the agent in a reset that goes on without it."""
    house = build()
    await house.look()
    row = GpuCondition(bdf=Bdf(BDF), clean=False, since=house.clock.now())
    await house.store.transact(lambda tx: tx.put_gpu_condition(row))
    (house.tree.devices / BDF / "config").write_bytes(b"\xff" * 64)
    await house.look(3)
    assert house.gpu().health.action is HealthAction.RESET
    assert house.gpu().state is GpuState.DIRTY
    await preparing(house, busy=False)  # clean, and it reads the same: that is what is wrong
    await house.look()
    assert house.gpu().state is GpuState.UNHEALTHY


async def test_a_reset_that_ends_in_the_middle_of_a_look_leaves_no_trace(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    """The bus was read while it went on; what is concluded from it comes after its end."""
    house = build()
    await house.look()
    asked = NvmlProbe.look

    async def look_late(probe: NvmlProbe, *arguments: Any) -> Any:
        (house.tree.devices / BDF / "config").write_bytes(ALIVE)
        await preparing(house, busy=False)
        house.watch.was_reset(Bdf(BDF))
        return await asked(probe, *arguments)

    monkeypatch.setattr(NvmlProbe, "look", look_late)
    for _ in range(4):
        await preparing(house, busy=True)
        (house.tree.devices / BDF / "config").write_bytes(b"\xff" * 64)
        await house.look()
        assert house.gpu().state is GpuState.FREE


async def test_a_quarantine_outlives_a_restart_and_a_renumbering_and_is_lifted_by_a_verb(
    build: Build,
):
    house = build()
    await house.look()
    await house.watch.quarantine(Bdf(BDF), "three launches failed", "agent")
    assert house.gpu().state is GpuState.QUARANTINED
    port = (house.tree.devices / "0000:17:01.0").resolve()
    house.tree.remove("0000:18:00.1")
    house.tree.remove(BDF)
    house.tree.add(port, "0000:19:00.0", class_code=trees.GPU, device=trees.H100_PCIE)
    await house.again()
    inventory = await house.look()
    assert house.gpu("0000:19:00.0").state is GpuState.QUARANTINED
    assert [one.code for one in inventory.problems] == ["gpu_quarantined"]
    assert "gpus release 0000:19:00.0" in inventory.problems[0].mend
    gpu = await house.watch.release(Bdf("0000:19:00.0"), "local:0")
    assert (gpu.state, gpu.quarantine) == (GpuState.FREE, None)
    assert (await house.look()).problems == ()
    event = next(one for one in await house.events() if one.to == "lifted")
    assert (event.kind, event.actor, event.reason) == (
        "gpu_quarantine",
        "local:0",
        "three launches failed",
    )


async def test_a_release_again_changes_nothing(build: Build):
    house = build()
    await house.look()
    before = await house.events()
    assert (await house.watch.release(Bdf(BDF), "local:0")).state is GpuState.FREE
    assert await house.events() == before


async def test_a_gpu_beyond_repair_is_quarantined_and_not_released(build: Build):
    house = build()
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF, remapped_rows="0 8 0 1")
    await house.look()
    assert house.gpu().state is GpuState.QUARANTINED
    house.tree.bind(BDF, "vfio-pci")
    await house.look(5)
    assert house.gpu().state is GpuState.QUARANTINED
    with pytest.raises(GpuConditionError, match="must be returned"):
        await house.watch.release(Bdf(BDF), "local:0")


async def test_an_absent_gpu_is_forgotten_by_a_release(build: Build):
    house = build()
    await house.look()
    house.tree.remove(OTHER)
    await house.look()
    assert (await house.watch.release(Bdf(OTHER), "local:0")).state is GpuState.ABSENT
    inventory = await house.look()
    assert [gpu.bdf for gpu in inventory.gpus] == [BDF]
    assert inventory.problems == ()


async def test_what_is_not_there_can_be_neither_quarantined_nor_released(build: Build):
    house = build()
    await house.look()
    for order in (
        house.watch.quarantine(Bdf("0000:ff:00.0"), "x", "y"),
        house.watch.release(Bdf("0000:ff:00.0"), "y"),
    ):
        with pytest.raises(UnknownGpuError):
            await order
    assert [event.to for event in await house.events()] == ["present", "present"]


async def test_a_quarantine_that_comes_during_a_look_is_not_lost(build: Build):
    house = build()
    await house.look()
    house.tree.remove(OTHER)  # the look has something to write
    await asyncio.gather(
        house.watch.refresh(), house.watch.quarantine(Bdf(BDF), "by hand", "local:0")
    )
    await house.look()
    assert house.gpu().state is GpuState.QUARANTINED


async def test_a_quarantine_that_could_not_be_kept_is_not_shown(build: Build):
    clock = ManualClock()
    store = FailingStore(MemoryStore(clock.now))
    house = build(store=store)
    await house.look()
    store.fail_all(FULL)
    with pytest.raises(StoreFullError):
        await house.watch.quarantine(Bdf(BDF), "by hand", "local:0")
    store.fail_all(None)
    await house.look()
    assert house.gpu().state is GpuState.FREE


async def test_a_bus_that_cannot_be_read_is_incomplete_and_what_was_seen_stays(build: Build):
    house = build()
    await house.look()
    (house.tree.root / "bus").rename(house.tree.root / "sub")
    inventory = await house.look()
    assert (inventory.complete, len(inventory.gpus)) == (False, 2)
    assert [one.code for one in inventory.problems] == ["inventory_unavailable"]
    await house.watch.quarantine(Bdf(BDF), "by hand", "local:0")
    assert not house.watch.inventory.complete  # an order is no look
    (house.tree.root / "sub").rename(house.tree.root / "bus")
    assert (await house.look()).complete


async def test_nothing_of_ours_holds_a_gpu_inside_released(build: Build):
    house = build()
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF)
    await house.look()
    async with house.watch.released():
        assert (await house.look()).problems == ()
        assert house.gpu().seen_by == (Sight.PCI,)
    await house.look()
    assert house.gpu().seen_by == (Sight.PCI, Sight.NVML)


async def test_the_end_does_not_wait_for_a_driver_that_hangs(build: Build):
    house = build()
    house.tree.bind(BDF, "nvidia")
    house.nvml.gpu(BDF)
    house.nvml.function("nvmlInitWithFlags", "hang")
    await house.watch.start()
    await asyncio.sleep(0.2)  # the process is there, and hangs
    async with asyncio.timeout(5):
        await house.watch.close()


async def test_a_refresh_of_a_whole_board_is_cheap_and_leaves_no_memory(build: Build):
    """At every five seconds, half a percent of a core is 25 ms."""
    house = build(trees.hgx_h100)
    await house.look(5)
    spent = []
    for _ in range(11):
        began = time.process_time()
        await house.watch.refresh()
        spent.append(time.process_time() - began)
    assert sorted(spent)[5] < 0.025

    tracemalloc.start()
    try:
        await house.look(10)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await house.look(50)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 16 * 1024
