"""Which GPUs are the agent's to take, and that an idle one touches none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.host.kernel_log import KernelLog
from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.pci import PciReader
from agent.inventory.platform import PlatformProbe
from agent.inventory.preparation.places import places_of
from agent.inventory.preparation.preparer import Preparer
from agent.inventory.preparation.records import DevicePlace
from agent.inventory.watch import InventoryWatch
from agent.model.gpu import HOST, GpuState
from agent.model.gpu_selection import (
    EVERY_GPU,
    GpuFacts,
    GpuSelection,
    left_alone,
    selection_faults,
)
from agent.model.ids import Bdf
from agent.updates.admission.gpus import gpu_uses
from simulator.nvml import Nvml
from simulator.profiles import PROFILES
from simulator.sysfs_tree import GPU, HGX_BUSES, SysfsTree, pcie_boards
from tests.fakes.preparation import GpuHost

CARD, OTHER = (Bdf(f"0000:{bus:02x}:00.0") for bus in HGX_BUSES[:2])
ONE = GpuFacts(
    bdf=CARD, uuid="GPU-aa-1", slot="7", names=("H100 PCIe", "NVIDIA H100 PCIe"), device=0x2331
)
TWO = GpuFacts(bdf=OTHER, uuid="GPU-bb-2", slot="7-1", names=("L40S",), device=0x26B9)
UNSEEN = GpuFacts(bdf=Bdf("0000:3a:00.0"), names=("H100 PCIe",), device=0x2331)
SHOWING = GpuFacts(bdf=CARD, uuid="GPU-aa-1", display="it is the display")


@pytest.mark.parametrize(
    "word",
    [
        *("GPU-AA-1", "0000:18:00.0", "18:00.0", "slot:7", "7", "H100", "nvidia h100 pcie"),
        *("model:H100 PCIe", "10de:2331", "2331"),
    ],
)
def test_a_gpu_is_named_by_uuid_address_slot_or_model(word: str) -> None:
    assert set(left_alone(GpuSelection(exclude=(word,)), [ONE, TWO])) == {CARD}
    assert set(left_alone(GpuSelection(include=(word,)), [ONE, TWO])) == {OTHER}


@pytest.mark.parametrize("word", ["H10", "100", "slot:7-", "GPU-aa-1x", "18:00.1", "PCIe H100"])
def test_what_is_only_like_it_names_none(word: str) -> None:
    assert left_alone(GpuSelection(exclude=(word,)), [ONE, TWO]) == {}
    faults = selection_faults(GpuSelection(exclude=(word,)), [ONE, TWO])
    assert faults == {"gpus.exclude": word}


def test_a_uuid_that_is_not_seen_guards_every_gpu_that_it_may_be() -> None:
    left = left_alone(GpuSelection(exclude=("GPU-cc-3",)), [ONE, UNSEEN])
    assert set(left) == {UNSEEN.bdf}
    assert "name it by its address" in left[UNSEEN.bdf]
    assert left_alone(GpuSelection(exclude=("GPU-aa-1",)), [ONE, UNSEEN]).keys() == {CARD}


def test_the_hosts_display_is_left_unless_it_is_named() -> None:
    assert "gpus.include" in left_alone(GpuSelection(), [SHOWING])[CARD]
    assert left_alone(GpuSelection(include=("GPU-aa-1",)), [SHOWING]) == {}
    both = GpuSelection(include=("GPU-aa-1",), exclude=("18:00.0",))
    assert "gpus.exclude" in left_alone(both, [SHOWING])[CARD]


class House:
    """An inventory of a tree, and the preparer that goes by it, as in the daemon."""

    def __init__(self, home: Path, tree: SysfsTree, selection: GpuSelection = EVERY_GPU) -> None:
        devices = [one.bdf for one in PciReader(tree.root).read()]
        self.host = GpuHost(tree, tuple(devices), home / "proc")
        self.clock = self.host.clock
        self.nvml = Nvml(home / "nvml")
        os.mkfifo(home / "kmsg")
        self.watch = InventoryWatch(
            self.host.store,
            self.clock,
            pci=PciReader(tree.root),
            platform=PlatformProbe(
                disk=home, sysfs_root=tree.root, cgroup_root=home / "cgroup", dev_root=home
            ),
            nvml=lambda hear: NvmlProbe(str(self.nvml.library), self.clock, on_event=hear),
            interval_s=60,
            guest_metrics=lambda _: None,
            uses=gpu_uses,
            kernel=lambda hear: KernelLog(hear, home / "kmsg"),
            selection=selection,
        )

    def places(self) -> dict[Bdf, DevicePlace]:
        inventory = self.watch.inventory
        return places_of((*inventory.gpus, *inventory.switches)) if inventory else {}

    def preparer(self) -> Preparer:
        return self.host.preparer(present=self.places, place_of=lambda bdf: self.places().get(bdf))


@pytest.mark.parametrize("driver", ["its own", "vfio-pci", None])
@pytest.mark.parametrize("name", sorted(PROFILES))
async def test_an_hour_of_an_idle_daemon_writes_to_no_device(
    tmp_path: Path, name: str, driver: str | None
) -> None:
    profile = PROFILES[name]
    tree = profile.tree(tmp_path / "sys")
    for bdf, its_own in profile.drivers(tree):
        tree.bind(bdf, its_own if driver == "its own" else driver)
    house = House(tmp_path, tree)
    before = {path: path.read_bytes() for path in _attributes(tree)}
    try:
        await house.watch._look(with_nvml=False)
        shop = house.preparer()
        await shop.start()
        task = asyncio.create_task(shop.keep())
        for minute in range(60):
            house.clock.advance(60)
            if minute % 20 == 0:
                await house.watch._look(with_nvml=False)
            shop.changed.notify()
            for _ in range(20):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    finally:
        await house.watch.close()
    assert house.host.kernel.log == []
    assert {path: path.read_bytes() for path in _attributes(tree)} == before
    assert all(row.clean and not row.used for row in (await house.host.rows()).values())
    assert {event.to for event in await house.host.events()} <= {"present"}


def _attributes(tree: SysfsTree) -> list[Path]:
    names = ("driver_override", "reset", "reset_method", "config")
    return [path / name for path in sorted(tree.devices.iterdir()) for name in names]


async def test_the_inventory_says_what_is_left_alone_and_what_the_settings_do_not_name(
    tmp_path: Path,
) -> None:
    tree = pcie_boards(tmp_path / "sys")
    tree.put(OTHER, "boot_vga", "1")
    tree.put(OTHER, "class", f"0x{GPU:06x}")
    slots = tree.root / "bus/pci/slots/9"
    slots.mkdir(parents=True)
    (slots / "address").write_text("0000:18:00\n")
    house = House(tmp_path, tree, GpuSelection(exclude=("slot:9", "slot:nowhere")))
    try:
        await house.watch.refresh()
        inventory = house.watch.inventory
        assert inventory is not None
        one, two = inventory.gpus
        assert (one.state, one.owner) == (GpuState.IN_USE, HOST)
        assert "gpus.exclude" in (one.left_alone or "")
        assert "display" in (two.left_alone or "")
        assert [problem.code for problem in inventory.problems] == ["gpu_unknown_name"]
        assert "slot:nowhere" in inventory.problems[0].detail
        places = places_of(inventory.gpus)
        assert all(place.left_alone for place in places.values())
        await house.host.claim(CARD)
        await house.watch.refresh()
    finally:
        await house.watch.close()


async def test_what_is_left_alone_is_not_requalified(tmp_path: Path) -> None:
    tree = pcie_boards(tmp_path / "sys")
    house = House(tmp_path, tree, GpuSelection(exclude=("18:00.0",)))
    await house.host.leave(CARD, OTHER)
    try:
        await house.watch.refresh()
        shop = house.preparer()
        task = asyncio.create_task(shop.keep())
        async with asyncio.timeout(10):
            while not (await house.host.rows())[OTHER].clean:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    finally:
        await house.watch.close()
    assert not any(CARD in line for line in house.host.kernel.log)
    assert not (await house.host.rows())[CARD].clean
