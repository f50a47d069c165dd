"""What is read of the PCI bus, from trees as the kernel would show them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent.inventory.host import InventoryError
from agent.inventory.pci import PciReader
from agent.model.pci import Aer, Link, PciFunction, PciKind, classify
from simulator import sysfs_tree as trees

ODD = "0000:18:00.0"


@pytest.fixture
def hgx(tmp_path: Path) -> trees.SysfsTree:
    return trees.hgx_h100(tmp_path / "sys")


def one(tree: trees.SysfsTree, bdf: str = ODD) -> PciFunction:
    return {each.bdf: each for each in PciReader(tree.root).read()}[bdf]


def test_an_hgx_h100_shows_eight_gpus_and_four_switches(hgx: trees.SysfsTree):
    found = PciReader(hgx.root).read()
    assert [each.kind for each in found].count(PciKind.GPU) == 8
    assert [each.bdf for each in found if each.kind is PciKind.SWITCH] == [
        "0000:07:00.0",
        "0000:08:00.0",
        "0000:09:00.0",
        "0000:0a:00.0",
    ]
    assert [each.numa_node for each in found if each.kind is PciKind.GPU] == [0] * 4 + [1] * 4


def test_everything_about_a_function_is_read(hgx: trees.SysfsTree):
    hgx.bind(ODD, "vfio-pci")
    hgx.put(ODD, "driver_override", "vfio-pci")
    hgx.put(ODD, "aer_dev_correctable", "RxErr 3\nBadTLP 4\nTOTAL_ERR_COR 7")
    gpu = one(hgx)
    assert (gpu.class_code, gpu.vendor, gpu.device) == (0x030200, 0x10DE, 0x2330)
    assert (gpu.subsystem_vendor, gpu.subsystem_device) == (0x10DE, 0x16C1)
    assert (gpu.driver, gpu.driver_override, gpu.vfio_device) == ("vfio-pci", "vfio-pci", "vfio0")
    assert [bar.size_bytes >> 20 for bar in gpu.bars or ()] == [16, 131072, 32]
    assert [bar.index for bar in gpu.bars or ()] == [0, 2, 4]
    assert gpu.bar_bytes == (16 + 131072 + 32) << 20
    assert gpu.reset_methods == ("flr", "bus")
    assert gpu.can_reset
    assert gpu.link == Link(speed_gts=32.0, width=16, max_speed_gts=32.0, max_width=16)
    assert gpu.aer == Aer(correctable=7, nonfatal=0, fatal=0)
    assert (gpu.responds, gpu.d3cold_allowed) == (True, True)
    assert [member.bdf for member in gpu.group] == [ODD]


def test_what_is_missing_or_broken_is_unknown_and_never_zero(hgx: trees.SysfsTree):
    for name in ("reset_method", "reset", "aer_dev_fatal", "max_link_width", "d3cold_allowed"):
        hgx.drop(ODD, name)
    for name, value in {
        "numa_node": "-1",
        "current_link_speed": "Unknown",
        "current_link_width": "63",
        "subsystem_device": "nonsense",
        "resource": "not a resource",
        "aer_dev_nonfatal": "",
        "driver_override": "(null)",
    }.items():
        hgx.put(ODD, name, value)
    (hgx.devices / ODD / "config").write_bytes(b"")
    gpu = one(hgx)
    assert gpu.reset_methods is None
    assert not gpu.can_reset
    assert gpu.numa_node is None
    # the port above still says how wide the slot is
    assert gpu.link == Link(speed_gts=None, width=None, max_speed_gts=32.0, max_width=16)
    assert gpu.aer == Aer(correctable=0, nonfatal=None, fatal=None)
    assert gpu.bars is None
    assert gpu.bar_bytes is None
    assert (gpu.responds, gpu.d3cold_allowed, gpu.driver_override) == (None, None, None)
    assert gpu.subsystem_device is None


def test_a_card_in_a_slower_slot_is_at_its_best(hgx: trees.SysfsTree):
    port = hgx.devices / "0000:17:01.0"
    hgx.put(port, "max_link_speed", "16.0 GT/s PCIe")
    hgx.put(port, "max_link_width", "8")
    hgx.put(ODD, "current_link_speed", "16.0 GT/s PCIe")
    hgx.put(ODD, "current_link_width", "8")
    assert one(hgx).link == Link(speed_gts=16.0, width=8, max_speed_gts=16.0, max_width=8)


def test_a_device_that_fell_off_the_bus_answers_all_ones(hgx: trees.SysfsTree):
    hgx.fall_off(ODD)
    gpu = one(hgx)
    assert gpu.responds is False
    assert gpu.kind is PciKind.GPU


def test_a_device_without_power_is_not_woken_to_be_asked(hgx: trees.SysfsTree):
    hgx.put(ODD, "power_state", "D3cold")
    (hgx.devices / ODD / "config").unlink()
    (hgx.devices / ODD / "config").mkdir()  # reading it would be an error
    assert one(hgx).responds is None


def test_the_whole_iommu_group_is_told_with_what_each_member_is(tmp_path: Path):
    tree = trees.pcie_boards(tmp_path / "sys")
    gpu = one(tree)
    members = {each.bdf: (each.kind, each.driver) for each in gpu.group}
    assert members == {
        ODD: (PciKind.GPU, None),
        "0000:18:00.1": (PciKind.AUDIO, "snd_hda_intel"),
    }


def test_without_an_iommu_there_is_no_group(tmp_path: Path):
    tree = trees.SysfsTree(tmp_path / "sys")
    tree.gpu_behind_port("pci0000:17", 0x18, group=None)
    assert (one(tree).iommu_group, one(tree).group) == (None, ())


def test_virtual_functions_audio_and_other_vendors_cards_are_not_gpus_of_ours(tmp_path: Path):
    tree = trees.pcie_boards(tmp_path / "sys")
    trees.with_virtual_function(tree, ODD)
    trees.with_amd_card(tree)
    assert [each.bdf for each in PciReader(tree.root).read()] == [ODD, "0000:2a:00.0"]


@pytest.mark.parametrize(
    ("class_code", "vendor", "virtual", "kind"),
    [
        (0x030000, 0x10DE, False, PciKind.GPU),
        (0x030200, 0x10DE, False, PciKind.GPU),
        (0x030200, 0x10DE, True, PciKind.VIRTUAL),
        (0x030200, 0x1002, False, PciKind.FOREIGN_GPU),
        (0x068000, 0x10DE, False, PciKind.SWITCH),
        (0x068000, 0x8086, False, PciKind.BRIDGE),
        (0x060400, 0x10DE, False, PciKind.BRIDGE),
        (0x040300, 0x10DE, False, PciKind.AUDIO),
        (0x020000, 0x15B3, False, PciKind.OTHER),
        (None, 0x10DE, False, PciKind.OTHER),
    ],
)
def test_a_function_is_what_its_class_and_vendor_say(
    class_code: int | None, vendor: int, virtual: bool, kind: PciKind
):
    assert classify(class_code=class_code, vendor=vendor, virtual=virtual) is kind


def test_a_b200_board_shows_no_switches(tmp_path: Path):
    found = PciReader(trees.hgx_b200(tmp_path / "sys").root).read()
    assert [each.kind for each in found] == [PciKind.GPU] * 8


def test_hot_removal_and_return_are_seen_by_the_same_reader(hgx: trees.SysfsTree):
    reader = PciReader(hgx.root)
    assert len(reader.read()) == 12
    hgx.remove(ODD)
    assert ODD not in {each.bdf for each in reader.read()}
    port = (hgx.devices / "0000:17:01.0").resolve()
    hgx.add(port, ODD, class_code=trees.GPU_3D, device=trees.B200)
    back = {each.bdf: each for each in reader.read()}[ODD]
    assert back.device == trees.B200  # another card in its place is not taken for the old one


def test_a_location_has_no_bus_numbers_below_the_root(tmp_path: Path):
    before, after = trees.SysfsTree(tmp_path / "a"), trees.SysfsTree(tmp_path / "b")
    for tree, bus in ((before, 0x18), (after, 0x19)):
        port = tree.add(
            tree.bus("pci0000:17"), "0000:17:01.0", class_code=trees.BRIDGE, vendor=trees.INTEL
        )
        tree.add(port, f"0000:{bus:02x}:00.0", class_code=trees.GPU_3D, device=0x2330)
    assert one(before).location == one(after, "0000:19:00.0").location == "pci0000:17/01.0/00.0"


def test_two_functions_at_one_place_are_told_apart_by_their_addresses(tmp_path: Path):
    tree = trees.SysfsTree(tmp_path / "sys")
    for bus in ("18", "19"):
        tree.add(tree.bus("pci0000:00"), f"0000:{bus}:00.0", class_code=trees.GPU_3D)
    found = PciReader(tree.root).read()
    assert len({each.location for each in found}) == len(found) == 2


def test_a_machine_without_pci_has_no_gpus_and_no_sysfs_is_an_error(tmp_path: Path):
    (tmp_path / "sys/bus").mkdir(parents=True)
    assert PciReader(tmp_path / "sys").read() == ()
    with pytest.raises(InventoryError, match="no sysfs"):
        PciReader(tmp_path / "nowhere").read()


def test_this_very_machine_can_be_read():
    assert isinstance(PciReader().read(), tuple)


def test_a_board_of_eight_and_four_is_read_within_ten_milliseconds(hgx: trees.SysfsTree):
    reader = PciReader(hgx.root)
    reader.read()
    spent = []
    for _ in range(9):
        began = time.thread_time()
        reader.read()
        spent.append(time.thread_time() - began)
    assert sorted(spent)[4] < 0.010


UNSET = "0x0000000000000000 0x0000001fffffffff 0x000000002014220c"
NONE = "0x0000000000000000 0x0000000000000000 0x0000000000000000"


@pytest.mark.parametrize(
    ("second", "bars"),
    [
        (UNSET, [(0, 16 << 20, True), (1, 128 << 30, False)]),
        (NONE, [(0, 16 << 20, True)]),
        ("0x0 0x0 0x20140208", [(0, 16 << 20, True), (1, 0, False)]),
        # an address of 0 is none, whatever the flags say
        ("0x0 0x1fffffffff 0x14220c", [(0, 16 << 20, True), (1, 128 << 30, False)]),
    ],
)
def test_a_region_without_an_address_is_told_apart(
    hgx: trees.SysfsTree, second: str, bars: list[tuple[int, int, bool]]
):
    first = "0x0000000092000000 0x0000000092ffffff 0x0000000000040200"
    hgx.put(ODD, "resource", "\n".join([first, second, *[NONE] * 5]))
    assert [(bar.index, bar.size_bytes, bar.assigned) for bar in one(hgx).bars or ()] == bars


@pytest.mark.parametrize(
    ("config", "responds"),
    [
        (b"\xde\x10\x30\x23" + bytes(60), True),
        (b"\xff" * 64, False),
        (b"\xde\x10\x30\x23" + b"\xff" * 60, False),  # the first word came from a cache
        (b"\x01\x00\xff\xff" + bytes(60), None),  # it asks to be tried again
        (b"\xde\x10", None),
    ],
)
def test_a_configuration_space_tells_whether_the_device_is_there(
    hgx: trees.SysfsTree, config: bytes, responds: bool | None
):
    (hgx.devices / ODD / "config").write_bytes(config)
    assert one(hgx).responds is responds
