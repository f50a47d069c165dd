"""Preparation judges a device as the inventory does: its link, its group, whether it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.inventory.pci import PciReader
from agent.inventory.preparation.errors import BindingError, UnqualifiedError
from agent.inventory.preparation.functions import look, vitals
from agent.model.gpu import CcMode
from agent.model.ids import Bdf
from agent.model.iommu_group import judge_group
from agent.model.pci_link import lost_lanes
from simulator import sysfs_tree as trees
from tests.fakes.gpus import BDF
from tests.fakes.preparation import ENCLAVE, GpuHost

PORT = "0000:17:01.0"
CARD = Bdf(BDF)
LINK = ("current_link_width", "max_link_width", "current_link_speed", "max_link_speed")


@pytest.fixture
def host(tmp_path: Path) -> GpuHost:
    tree = trees.SysfsTree(tmp_path / "sys")
    tree.gpu_behind_port("pci0000:17", 0x18, device=trees.H100_PCIE, driver="nvidia")
    return GpuHost(tree, (CARD,), tmp_path / "proc")


async def prepare(host: GpuHost) -> None:
    await host.claim(CARD)
    await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.ON)


def inventory_says(host: GpuHost) -> str | None:
    (one,) = PciReader(host.tree.root).read()
    return lost_lanes(one.link)


@pytest.mark.parametrize("lanes", ["4", "8"])
async def test_a_slot_with_fewer_lanes_than_its_card_is_full(host: GpuHost, lanes: str) -> None:
    host.tree.put(PORT, "max_link_width", lanes)
    host.tree.put(CARD, "current_link_width", lanes)
    assert inventory_says(host) is None
    await prepare(host)
    assert host.quarantined == {}


async def test_a_link_that_tells_nothing_of_itself_keeps_nobody_from_its_gpu(
    host: GpuHost,
) -> None:
    for name in LINK:
        host.tree.drop(CARD, name)
    await prepare(host)
    assert host.quarantined == {}


@pytest.mark.parametrize("told", ["Unknown", "0", "63", "255"])
async def test_a_width_that_is_none_is_not_known(host: GpuHost, told: str) -> None:
    host.tree.put(CARD, "current_link_width", told)
    await prepare(host)
    assert host.quarantined == {}


async def test_a_link_that_lost_lanes_is_bad_by_both(host: GpuHost) -> None:
    host.tree.put(PORT, "max_link_width", "8")
    host.tree.put(CARD, "current_link_width", "4")
    assert inventory_says(host) == "its link has 4 of 8 lanes"
    with pytest.raises(UnqualifiedError, match="4 of 8 lanes"):
        await prepare(host)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (b"\xff" * 64, "reads all ones"),
        (b"\x01\x00\xff\xff" + bytes(60), "asks to be tried again"),
        (b"", "cannot be read"),
    ],
)
async def test_a_device_that_does_not_show_that_it_answers_is_not_ready(
    host: GpuHost, config: bytes, fault: str
) -> None:
    (host.tree.devices / CARD / "config").write_bytes(config)
    with pytest.raises(UnqualifiedError, match=fault):
        await host.preparer().examine([CARD])


async def test_all_functions_of_a_card_are_taken_and_given_back_together(tmp_path: Path) -> None:
    tree = trees.SysfsTree(tmp_path / "sys")
    tree.gpu_behind_port("pci0000:17", 0x18, class_code=trees.GPU, device=0x1E30, group=11)
    above = (tree.devices / CARD).resolve().parent
    rest = [f"0000:18:00.{number}" for number in (1, 2, 3)]
    for bdf, code in zip(rest, (trees.AUDIO, 0x0C0330, 0x0C8000), strict=True):
        tree.add(above, bdf, class_code=code, driver="xhci_hcd", group=11)
    host = GpuHost(tree, (CARD,), tmp_path / "proc")
    await prepare(host)
    drivers = host.kernel.drivers()
    assert {drivers[bdf] for bdf in (CARD, *rest)} == {"vfio-pci"}
    (one,) = PciReader(tree.root).read()
    seen = look(tree.root, CARD)
    assert seen is not None
    assert seen.group == judge_group(one.bdf, one.iommu_group, one.group)


@pytest.mark.parametrize("driver", [None, "vfio-pci", "pci-stub"])
async def test_a_stranger_that_nobody_uses_hinders_no_group(
    host: GpuHost, driver: str | None
) -> None:
    stranger = _stranger(host, driver)
    await prepare(host)
    assert host.kernel.drivers()[stranger] == driver  # and it is left as it was


async def test_a_stranger_that_the_host_uses_is_told_with_its_driver(host: GpuHost) -> None:
    _stranger(host, "nvme")
    with pytest.raises(BindingError, match=r"0000:03:00\.0 \(with nvme\).*ACS"):
        await host.preparer().examine([CARD])
    assert host.kernel.log == []


def _stranger(host: GpuHost, driver: str | None) -> str:
    bdf, group = "0000:03:00.0", (host.tree.devices / CARD / "iommu_group").resolve().name
    host.tree.add(
        host.tree.bus("pci0000:00"),
        bdf,
        class_code=0x010802,
        vendor=0x144D,
        driver=driver,
        group=int(group),
    )
    return bdf


def test_what_is_read_of_a_device_is_read_alike(host: GpuHost) -> None:
    (one,) = PciReader(host.tree.root).read()
    seen = look(host.tree.root, CARD)
    assert seen is not None
    assert (vitals(seen).link, vitals(seen).responds) == (one.link, one.responds)
