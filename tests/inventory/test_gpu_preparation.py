"""From a GPU that was used to one that is free: bound whole, reset, proven, in its mode."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.inventory.preparation.errors import (
    BindingError,
    GpuHeldError,
    GpuOwnedError,
    GpuQuarantinedError,
    ModeError,
    PreparationError,
    UnqualifiedError,
)
from agent.inventory.preparation.functions import look
from agent.inventory.preparation.modes import ModeTool, parse_modes
from agent.inventory.preparation.places import places_of
from agent.inventory.preparation.preparer import Preparer
from agent.inventory.preparation.records import DevicePlace, unowned_dirty, word
from agent.model.gpu import HOST, CcMode, Gpu, GpuHealth, GpuState, HealthAction
from agent.model.ids import Bdf
from agent.model.pci import GroupMember, PciKind
from simulator.pci_kernel import Died
from simulator.sysfs_tree import (
    HGX_BUSES,
    NVSWITCH,
    SWITCH,
    SysfsTree,
    hgx_h100,
    pcie_boards,
)
from tests.fakes.preparation import ENCLAVE, GpuHost

CARDS = tuple(Bdf(f"0000:{bus:02x}:00.0") for bus in HGX_BUSES[:2])
AUDIO = Bdf(CARDS[0][:-1] + "1")
EIGHT = tuple(Bdf(f"0000:{bus:02x}:00.0") for bus in HGX_BUSES)
SWITCHES = tuple(Bdf(f"0000:{bus:02x}:00.0") for bus in (0x07, 0x08, 0x09, 0x0A))


@pytest.fixture
def cards(tmp_path: Path) -> GpuHost:
    """Two H100 PCIe, each with an audio function in its IOMMU group; nvidia has the first."""
    tree = pcie_boards(tmp_path / "sys")
    tree.bind(CARDS[0], "nvidia")
    return GpuHost(tree, CARDS, tmp_path / "proc")


@pytest.fixture
def hgx(tmp_path: Path) -> GpuHost:
    """Eight H100 SXM and four switches, one mode for all."""
    tree = hgx_h100(tmp_path / "sys")
    return GpuHost(tree, EIGHT, tmp_path / "proc", switches=SWITCHES, one_board=True)


async def words(host: GpuHost) -> dict[str, str]:
    return {bdf: word(row) for bdf, row in (await host.rows()).items()}


async def events(host: GpuHost) -> list[tuple[str, str, str]]:
    found = await host.store.read(lambda tx: tx.events(0))
    return [(event.gpu, event.from_, event.to) for event in found]


async def test_the_whole_group_goes_to_vfio_and_what_the_host_had_is_reset(cards: GpuHost) -> None:
    await cards.claim(CARDS[0])
    await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    drivers = cards.kernel.drivers()
    assert (drivers[CARDS[0]], drivers[AUDIO]) == ("vfio-pci", "vfio-pci")
    assert drivers[CARDS[1]] is None  # nobody's business
    assert drivers["0000:17:01.0"] == "pcieport"  # the bridge above stays as it is
    log = cards.kernel.log
    assert log[:4] == [
        f"override {CARDS[0]} -",
        f"unbind {CARDS[0]} nvidia",
        f"override {CARDS[0]} vfio-pci",
        f"bind {CARDS[0]} vfio-pci",
    ]
    assert f"reset {CARDS[0]}" in log
    assert not any("new_id" in line for line in log)
    row = (await cards.rows())[CARDS[0]]
    assert (word(row), row.mode, row.fault) == ("clean", CcMode.ON, None)
    assert await events(cards) == [
        (CARDS[0], "clean", "preparing"),
        (CARDS[0], "preparing", "clean"),
    ]


async def test_what_is_ready_is_not_touched_again(cards: GpuHost) -> None:
    await cards.claim(CARDS[0])
    await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    done = len(cards.kernel.log)
    await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    assert len(cards.kernel.log) == done


async def test_a_gpu_that_an_enclave_left_is_free_only_after_it_was_requalified(
    cards: GpuHost,
) -> None:
    await cards.claim(CARDS[0])
    shop = cards.preparer()
    await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    await cards.leave(CARDS[0])
    assert await words(cards) == {CARDS[0]: "dirty"}
    cards.kernel.log.clear()
    async with kept(shop):
        await until(cards, {CARDS[0]: "clean"})
    mine = [line for line in cards.kernel.log if CARDS[0] in line]
    assert mine[0] == f"reset {CARDS[0]}"
    assert (await cards.rows())[CARDS[0]].mode is CcMode.ON


@contextlib.asynccontextmanager
async def kept(shop: Preparer) -> AsyncIterator[None]:
    task = asyncio.create_task(shop.keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(host: GpuHost, wanted: dict[str, str]) -> None:
    async with asyncio.timeout(20):
        while not wanted.items() <= (await words(host)).items():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("driver", "target"),
    [
        ("vfio-pci", "/dev/vfio/{group}"),
        ("vfio-pci", "/dev/vfio/devices/{cdev}"),
        ("nvidia", "/dev/nvidia0"),
        ("nvidia", "/sys/devices/pci0000:17/0000:17:01.0/{bdf}/resource0"),
    ],
)
async def test_a_gpu_that_a_process_has_open_is_not_touched_and_the_process_is_named(
    cards: GpuHost, driver: str, target: str
) -> None:
    cards.tree.bind(CARDS[0], driver)
    one = look(cards.tree.root, CARDS[0])
    assert one is not None
    path = target.format(group=one.iommu_group, cdev=one.vfio_device, bdf=CARDS[0])
    cards.hold(4242, "dcgm", ["/dev/null", path])
    await cards.claim(CARDS[0])
    with pytest.raises(GpuHeldError, match=r"held by dcgm \(pid 4242"):
        await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    assert cards.kernel.log == []
    assert await words(cards) == {CARDS[0]: "dirty"}
    assert cards.quarantined == {}


async def test_the_holder_of_another_gpu_is_nobodys_concern(cards: GpuHost) -> None:
    information = cards.proc / "driver/nvidia/gpus" / CARDS[0]
    information.mkdir(parents=True)
    (information / "information").write_text("Model: NVIDIA H100\nDevice Minor: \t 3\n")
    cards.hold(1, "other", ["/dev/nvidia1", "/dev/vfio/999", "/dev/vfio/vfio"])
    await cards.claim(CARDS[0])
    await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)


async def test_what_is_another_enclaves_or_nobodys_is_not_touched(cards: GpuHost) -> None:
    shop = cards.preparer()
    with pytest.raises(GpuOwnedError, match="nobody's"):
        await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    await cards.claim(CARDS[0], holder="bbbbbbbb")
    with pytest.raises(GpuOwnedError, match="is bbbbbbbb's"):
        await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    await cards.leave(CARDS[1])
    await cards.claim(CARDS[1], holder="bbbbbbbb")
    with pytest.raises(GpuOwnedError):
        await shop.requalify(CARDS[1])
    assert cards.kernel.log == []


async def test_nvml_is_away_while_anything_is_unbound(cards: GpuHost) -> None:
    away: list[int] = []

    @contextlib.asynccontextmanager
    async def released() -> AsyncIterator[None]:
        away.append(len(cards.kernel.log))
        yield
        away.append(len(cards.kernel.log))

    await cards.claim(CARDS[0])
    await cards.preparer(released=released).make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    assert away == [0, len(cards.kernel.log)]


async def test_a_gpu_that_does_not_come_back_is_quarantined_with_the_reason(
    cards: GpuHost,
) -> None:
    cards.kernel.dead.add(CARDS[0])
    await cards.claim(CARDS[0])
    with pytest.raises(UnqualifiedError):
        await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    assert "reads all ones" in cards.quarantined[CARDS[0]]
    row = (await cards.rows())[CARDS[0]]
    assert (word(row), row.mode) == ("dirty", None)
    assert row.fault == cards.quarantined[CARDS[0]]


async def test_a_link_that_lost_lanes_does_not_qualify(cards: GpuHost) -> None:
    cards.tree.put(CARDS[0], "current_link_width", "8")
    await cards.claim(CARDS[0])
    with pytest.raises(UnqualifiedError, match="8 of 16 lanes"):
        await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)


async def test_a_quarantined_gpu_is_left_alone_until_it_is_lifted_and_then_requalified(
    cards: GpuHost,
) -> None:
    await cards.leave(*CARDS)
    cards.quarantined[CARDS[0]] = "by hand"
    shop = cards.preparer()
    async with kept(shop):
        await until(cards, {CARDS[0]: "dirty", CARDS[1]: "clean"})
        assert not any(CARDS[0] in line for line in cards.kernel.log)
        cards.quarantined.clear()
        shop.changed.notify()
        await until(cards, dict.fromkeys(CARDS, "clean"))


def resets(host: GpuHost, bdf: str) -> int:
    return host.kernel.log.count(f"reset {bdf}")


async def test_a_free_gpu_whose_health_asks_for_a_reset_is_reset_and_not_over_and_over(
    cards: GpuHost,
) -> None:
    await cards.claim(CARDS[0])
    await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    await cards.abandon()
    before = resets(cards, CARDS[0])
    cards.asking.update(CARDS)
    async with kept(cards.preparer()):
        while resets(cards, CARDS[0]) == before:
            await asyncio.sleep(0.005)
        await until(cards, {CARDS[0]: "clean"})
    async with kept(shop := cards.preparer()):  # it asks still, also after a restart
        shop.changed.notify()
        await asyncio.sleep(0.1)
        assert resets(cards, CARDS[0]) == before + 1
        assert not any(CARDS[1] in line for line in cards.kernel.log)  # nobody asked for it
        cards.clock.advance(3601)
        shop.changed.notify()
        while resets(cards, CARDS[0]) == before + 1:
            await asyncio.sleep(0.005)
    told = [event.reason for event in await cards.events() if event.to == "dirty"]
    assert told[0] == "its health asks for a reset"


async def test_a_gpu_that_somebody_has_is_reset_only_after_it_whatever_its_health(
    cards: GpuHost,
) -> None:
    cards.asking.update(CARDS)
    await cards.claim(CARDS[0])
    await cards.claim(CARDS[1], holder="a-lease")
    shop = cards.preparer()
    async with kept(shop):
        shop.changed.notify()
        await asyncio.sleep(0.1)
        assert cards.kernel.log == []
        await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.OFF)
        assert resets(cards, CARDS[0]) == 1
        await cards.leave(CARDS[0])
        shop.changed.notify()
        while resets(cards, CARDS[0]) == 1:
            await asyncio.sleep(0.005)
    assert resets(cards, CARDS[1]) == 0


async def test_a_gpu_that_is_clean_is_reset_for_its_next_enclave_if_its_health_asks(
    cards: GpuHost,
) -> None:
    await cards.claim(CARDS[0])
    shop = cards.preparer(was_reset=cards.asking.discard)
    await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.OFF)
    before = resets(cards, CARDS[0])
    cards.asking.add(CARDS[0])
    await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.OFF)
    await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.OFF)
    assert resets(cards, CARDS[0]) == before + 1


def test_only_what_a_reset_mends_of_a_gpu_that_is_not_the_hosts_asks_for_one() -> None:
    def asks(action: HealthAction, owner: str | None = None) -> bool:
        gpu = Gpu(bdf=CARDS[0], state=GpuState.FREE, owner=owner, health=GpuHealth(action=action))
        return places_of([gpu])[CARDS[0]].asks_for_reset

    assert asks(HealthAction.RESET)
    assert not asks(HealthAction.RESET, HOST)
    assert not any(asks(action) for action in HealthAction if action is not HealthAction.RESET)


async def test_a_gpu_that_took_part_in_three_failed_launches_is_quarantined_once(
    cards: GpuHost,
) -> None:
    await cards.claim(CARDS[0])
    await cards.leave(CARDS[0])
    await cards.claim(CARDS[0])
    shop = cards.preparer()
    for failed in range(3):
        await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
        await cards.launch_failed(CARDS[0])
        assert (await cards.rows())[CARDS[0]].failed_launches == failed + 1
    with pytest.raises(GpuQuarantinedError, match="release it"):
        await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    assert cards.quarantined == {CARDS[0]: "3 launches in a row failed with it"}
    cards.quarantined.clear()
    await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.ON)


async def test_vfio_that_does_not_take_it_and_a_device_without_iommu_are_errors_of_the_binding(
    cards: GpuHost,
) -> None:
    cards.kernel.refused.add(CARDS[0])
    await cards.claim(*CARDS)
    with pytest.raises(BindingError):
        await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    (cards.tree.devices / CARDS[1] / "iommu_group").unlink()
    with pytest.raises(BindingError, match="enable the IOMMU"):
        await cards.preparer().make_ready(ENCLAVE, CARDS[1:], CcMode.ON)
    cards.tree.remove(CARDS[1])
    with pytest.raises(BindingError, match="not on the bus"):
        await cards.preparer().make_ready(ENCLAVE, CARDS[1:], CcMode.ON)
    assert await words(cards) == dict.fromkeys(CARDS, "dirty")


async def test_what_shares_its_group_with_another_device_is_never_taken_from_the_host(
    cards: GpuHost,
) -> None:
    one = look(cards.tree.root, CARDS[0])
    assert one is not None
    cards.tree.join("0000:00:03.0", one.iommu_group or 0)  # the network card
    await cards.claim(CARDS[0])
    with pytest.raises(BindingError, match=r"shares its IOMMU group with 0000:00:03\.0"):
        await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    assert cards.kernel.log == []
    assert cards.kernel.drivers()["0000:00:03.0"] == "ice"


async def test_two_gpus_of_one_group_are_worked_on_one_after_the_other(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path / "sys")
    pair = tuple(Bdf(tree.gpu_behind_port(f"pci0000:{n:02x}", n + 1, group=3)) for n in (1, 4))
    host = GpuHost(tree, pair, tmp_path / "proc")
    host.kernel.lag_s = 0.01
    await host.leave(*pair)
    shop = host.preparer()
    await asyncio.gather(*map(shop.requalify, pair))
    assert host.kernel.most_writing == 1
    assert await words(host) == dict.fromkeys(pair, "clean")


async def test_every_gpu_of_several_that_does_not_come_back_is_quarantined(
    cards: GpuHost,
) -> None:
    cards.kernel.dead |= set(CARDS)
    await cards.claim(*CARDS)
    with pytest.raises(UnqualifiedError):
        await cards.preparer().make_ready(ENCLAVE, CARDS, CcMode.ON)
    assert set(cards.quarantined) == set(CARDS)


async def test_a_group_goes_back_to_the_drivers_that_the_host_has_for_it(cards: GpuHost) -> None:
    await cards.claim(CARDS[0])
    shop = cards.preparer()
    await shop.make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    await cards.device_ops().give_to_host(CARDS[0])
    drivers = cards.kernel.drivers()
    assert (drivers[CARDS[0]], drivers[AUDIO]) == ("nvidia", "nvidia")
    assert (cards.tree.devices / CARDS[0] / "driver_override").read_text().strip() == "(null)"


async def test_several_are_worked_on_at_once_and_one_of_them_never_twice(hgx: GpuHost) -> None:
    await hgx.leave(*EIGHT)
    for bdf in EIGHT:
        hgx.kernel.in_mode(bdf, cc="on")
    hgx.kernel.lag_s = 0.05
    shop = hgx.preparer()
    await asyncio.gather(*(shop.requalify(bdf) for bdf in (*EIGHT, *EIGHT)))
    assert await words(hgx) == dict.fromkeys(EIGHT, "clean")
    resets = [line for line in hgx.kernel.log if line.startswith("reset")]
    assert sorted(resets) == sorted(f"reset {bdf}" for bdf in EIGHT)
    assert hgx.kernel.most_writing > 1
    assert hgx.kernel.most_at_work == 1  # the tool, which is called for one at a time


async def test_the_mode_is_set_for_the_whole_board_one_device_after_another(hgx: GpuHost) -> None:
    devices = (*EIGHT, *SWITCHES)
    await hgx.claim(*devices)
    await hgx.preparer().make_ready(ENCLAVE, devices, CcMode.PPCIE)
    assert {row.mode for row in (await hgx.rows()).values()} == {CcMode.PPCIE}
    assert all(told["ppcie"] == "on" and told["cc"] == "off" for told in hgx.kernel.modes.values())
    assert hgx.kernel.most_at_work == 1
    assert not any("--set-cc-mode" in line and SWITCHES[0] in line for line in hgx.kernel.log)


async def test_one_gpu_takes_an_idle_board_along_to_its_mode(hgx: GpuHost) -> None:
    for bdf in hgx.all:
        hgx.kernel.in_mode(bdf, ppcie="on")
    await hgx.claim(EIGHT[0])
    await hgx.preparer().make_ready(ENCLAVE, EIGHT[:1], CcMode.ON)
    told = hgx.kernel.modes
    assert all((told[bdf]["cc"], told[bdf]["ppcie"]) == ("on", "off") for bdf in EIGHT)
    assert all(told[bdf]["ppcie"] == "off" for bdf in SWITCHES)
    assert await words(hgx) == dict.fromkeys(hgx.all, "clean")


async def test_the_mode_is_never_set_while_the_board_is_in_use(hgx: GpuHost) -> None:
    await hgx.claim(EIGHT[0])
    await hgx.claim(EIGHT[5], holder="bbbbbbbb")
    with pytest.raises(GpuOwnedError, match="is bbbbbbbb's"):
        await hgx.preparer().make_ready(ENCLAVE, EIGHT[:1], CcMode.ON)
    assert not any("--set" in line or EIGHT[5] in line for line in hgx.kernel.log)
    assert not any(row.bdf == EIGHT[5] for row in (await hgx.rows()).values())


async def test_nor_while_a_process_of_the_host_has_a_gpu_of_it(hgx: GpuHost) -> None:
    hgx.tree.bind(EIGHT[5], "nvidia")
    hgx.hold(7, "python3", ["/dev/nvidia5"])
    await hgx.claim(EIGHT[0])
    with pytest.raises(GpuHeldError, match="python3"):
        await hgx.preparer().make_ready(ENCLAVE, EIGHT[:1], CcMode.ON)
    assert not any("--set" in line for line in hgx.kernel.log)
    assert set((await words(hgx)).values()) == {"dirty"}  # nobody is at work any more


async def test_a_fabric_manager_that_has_the_switches_is_named_before_they_are_taken(
    hgx: GpuHost,
) -> None:
    for bdf in SWITCHES:
        hgx.tree.bind(bdf, "nvidia-nvswitch")
    hgx.hold(8, "nv-fabricmanage", ["/dev/nvidia-nvswitchctl", "/dev/nvidia-nvswitch2"])
    await hgx.claim(*hgx.all)
    with pytest.raises(GpuHeldError, match="nv-fabricmanage"):
        await hgx.preparer().make_ready(ENCLAVE, hgx.all, CcMode.PPCIE)
    assert not any("unbind" in line for line in hgx.kernel.log)
    shutil.rmtree(hgx.proc / "8")
    await hgx.preparer().make_ready(ENCLAVE, hgx.all, CcMode.PPCIE)
    assert set(hgx.kernel.drivers()[bdf] for bdf in SWITCHES) == {"vfio-pci"}


async def test_what_is_in_quarantine_is_left_out_of_a_change_of_the_mode(hgx: GpuHost) -> None:
    hgx.quarantined[EIGHT[7]] = "by hand"
    await hgx.claim(EIGHT[0])
    await hgx.preparer().make_ready(ENCLAVE, EIGHT[:1], CcMode.ON)
    assert not any(EIGHT[7] in line for line in hgx.kernel.log)
    assert hgx.kernel.modes[EIGHT[6]]["cc"] == "on"


async def test_two_that_each_want_the_others_gpu_are_both_turned_away(hgx: GpuHost) -> None:
    await hgx.claim(EIGHT[0])
    await hgx.claim(EIGHT[1], holder="bbbbbbbb")
    shop = hgx.preparer()
    async with asyncio.timeout(5):
        ended = await asyncio.gather(
            shop.make_ready(ENCLAVE, EIGHT[:1], CcMode.ON),
            shop.make_ready("bbbbbbbb", EIGHT[1:2], CcMode.ON),  # type: ignore[arg-type]
            return_exceptions=True,
        )
    assert [type(error) for error in ended] == [GpuOwnedError, GpuOwnedError]


async def test_a_pending_mode_that_differs_is_not_the_mode(cards: GpuHost) -> None:
    cards.kernel.in_mode(CARDS[0], cc="on", cc_next="off")
    cards.tree.bind(CARDS[0], "vfio-pci")
    cards.tree.bind(AUDIO, "vfio-pci")
    await cards.claim(CARDS[0])
    await cards.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.ON)
    assert any("--set-cc-mode on" in line for line in cards.kernel.log)
    assert (await cards.rows())[CARDS[0]].mode is CcMode.ON


async def test_without_confidential_computing_the_tool_is_not_called(tmp_path: Path) -> None:
    host = GpuHost(pcie_boards(tmp_path / "sys"), CARDS, tmp_path / "proc", confidential=False)
    await host.claim(CARDS[0])
    await host.preparer().make_ready(ENCLAVE, CARDS[:1], CcMode.OFF)
    assert not any(line.startswith("tool") for line in host.kernel.log)
    assert await words(host) == {CARDS[0]: "clean"}


async def test_a_tool_that_is_missing_or_not_understood_is_an_error_of_the_mode(
    cards: GpuHost, tmp_path: Path
) -> None:
    with pytest.raises(ModeError):
        await ModeTool(str(tmp_path / "none")).query(CARDS[0], kinds=("cc",))
    with pytest.raises(ModeError, match="does not say its mode"):
        parse_modes(CARDS[0], "GPU 0000:18:00.0 is fine\n")
    assert parse_modes(CARDS[0], "GPU x CC mode is on").pending is None


async def test_after_a_crash_what_was_under_way_is_dirty(cards: GpuHost) -> None:
    cards.confidential = False  # else the other one's mode is to be learned, too
    await cards.claim(CARDS[0])
    cards.kernel.before = _raise_died
    with pytest.raises((Died, BaseExceptionGroup)):
        await cards.preparer().make_ready(ENCLAVE, CARDS[:1], None)
    assert await words(cards) == {CARDS[0]: "preparing"}
    cards.kernel.before = lambda: None
    await cards.preparer().start()
    assert await words(cards) == {CARDS[0]: "dirty"}


def _raise_died() -> None:
    raise Died


async def test_a_reboot_may_have_renumbered_them_so_that_all_are_dirty_if_one_is(
    cards: GpuHost,
) -> None:
    cards.confidential = False
    await cards.claim(*CARDS)
    await cards.preparer().make_ready(ENCLAVE, CARDS, None)
    cards.clock.reboot("another")
    await cards.preparer().start()
    assert await words(cards) == dict.fromkeys(CARDS, "clean")
    await cards.leave(CARDS[0])
    cards.clock.reboot("a third")
    await cards.preparer().start()
    assert await words(cards) == dict.fromkeys(CARDS, "dirty")


async def test_who_asks_for_a_gpu_has_the_modes_of_its_board_learned(hgx: GpuHost) -> None:
    """Or the second of two enclaves could not be given a GPU of the board that is in use."""
    for bdf in EIGHT:
        hgx.kernel.in_mode(bdf, cc="on")
    shop = hgx.preparer()
    await shop.start()
    async with kept(shop):
        shop.changed.notify()
        await asyncio.sleep(0.05)
        assert hgx.kernel.log == []  # nobody has asked for any
        await hgx.claim(EIGHT[3])
        await shop.make_ready(ENCLAVE, EIGHT[3:4], CcMode.ON)
        async with asyncio.timeout(20):
            while any(row.mode is None for row in (await hgx.rows()).values()):
                await asyncio.sleep(0.005)
    rows = await hgx.rows()
    assert {rows[bdf].mode for bdf in EIGHT} == {CcMode.ON}
    assert {rows[bdf].mode for bdf in SWITCHES} == {CcMode.OFF}
    await hgx.abandon()
    hgx.clock.reboot("another")  # the mode may have been changed by hand meanwhile
    await shop.start()
    assert set((await words(hgx)).values()) == {"dirty"}


async def test_what_another_runs_on_is_examined_without_being_touched(cards: GpuHost) -> None:
    shop = cards.preparer()
    await shop.examine(CARDS)
    cards.tree.fall_off(CARDS[1])
    with pytest.raises(UnqualifiedError, match="all ones"):
        await shop.examine(CARDS)
    cards.quarantined[CARDS[0]] = "by hand"
    with pytest.raises(GpuQuarantinedError):
        await shop.examine(CARDS)
    assert cards.kernel.log == []
    assert await words(cards) == {}


def scenarios() -> Iterator[tuple[str, bool]]:
    yield from (("an enclave's card is made ready", False), ("a dirty card is cleaned", False))
    yield ("a board is brought to ppcie", True)
    yield ("one gpu takes the board along", True)


@pytest.mark.parametrize(("story", "board"), list(scenarios()))
async def test_killed_between_any_two_steps_it_ends_the_same(
    tmp_path: Path, story: str, board: bool
) -> None:
    """Before each write, call of the tool and transaction: what was done before it is done."""
    end = await _told(tmp_path / "whole", story, board, die_at=None)
    number = 0
    while True:
        number += 1
        cut = await _told(tmp_path / str(number), story, board, die_at=number)
        if cut is None:
            break
        assert cut == end, f"killed at step {number}"
    assert number > 7


async def _told(
    home: Path, story: str, board: bool, die_at: int | None
) -> tuple[dict[str, str | None], dict[str, str], dict[str, object]] | None:
    """How the host is in the end. None: the story was over before step `die_at`."""
    home.mkdir()
    host = _new_host(home, board)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if die_at is not None and steps >= die_at:  # the dead do nothing more
            raise Died

    devices = host.all if story == "a board is brought to ppcie" else host.devices[:1]
    mode = CcMode.PPCIE if len(devices) > 1 else CcMode.ON
    if story == "a dirty card is cleaned":
        await host.leave(devices[0])
    else:
        await host.claim(*devices)

    async def live(shop: Preparer) -> None:
        await shop.start()
        if story == "a dirty card is cleaned":
            await shop.requalify(devices[0])
        else:
            await shop.make_ready(ENCLAVE, devices, mode)

    for place in (host.kernel, host.store):
        place.before = step
    died = False
    try:
        await live(host.preparer())
    except* Died:
        died = True
    for place in (host.kernel, host.store):
        place.before = lambda: None
    if die_at is not None and not died:
        return None
    if died:
        await live(host.preparer())
    shop = host.preparer()
    for bdf in await host.store.read(unowned_dirty):
        await shop.requalify(bdf)
    rows = await host.rows()
    return (
        {bdf: driver for bdf, driver in host.kernel.drivers().items() if bdf in host.all},
        {bdf: word(rows[bdf]) for bdf in rows},
        {bdf: (rows[bdf].mode, host.kernel.modes[bdf]) for bdf in rows},
    )


def _new_host(home: Path, board: bool) -> GpuHost:
    if board:
        tree = SysfsTree(home / "sys")
        gpus = [Bdf(tree.gpu_behind_port(f"pci0000:{n - 1:02x}", n)) for n in HGX_BUSES[:2]]
        switch = Bdf(tree.gpu_behind_port("pci0000:04", 5, class_code=SWITCH, device=NVSWITCH))
        return GpuHost(tree, tuple(gpus), home / "proc", switches=(switch,), one_board=True)
    tree = pcie_boards(home / "sys")
    tree.bind(CARDS[0], "nvidia")
    return GpuHost(tree, CARDS, home / "proc")


def gpu(bdf: Bdf, device: int, **more: object) -> Gpu:
    values = {"state": GpuState.FREE, "iommu_group": 1} | more
    return Gpu(bdf=bdf, device=device, **values)


def test_a_place_is_the_board_and_the_kinds_of_mode_of_a_device() -> None:
    h100 = [gpu(bdf, 0x2330) for bdf in EIGHT]
    switches = [gpu(bdf, NVSWITCH, is_switch=True) for bdf in SWITCHES]
    places = places_of([*h100, *switches])
    assert places[EIGHT[0]] == DevicePlace((*EIGHT, *SWITCHES), ("cc", "ppcie"))
    assert places[SWITCHES[0]] == DevicePlace((*EIGHT, *SWITCHES), ("ppcie",))
    b200 = [gpu(bdf, 0x2901) for bdf in EIGHT]
    assert places_of(b200)[EIGHT[0]] == DevicePlace(EIGHT, ("cc",))
    lone = gpu(CARDS[0], 0x2331, state=GpuState.DIRTY)
    gone = gpu(CARDS[1], 0x2331, state=GpuState.ABSENT)
    assert places_of([lone, gone]) == {CARDS[0]: DevicePlace((CARDS[0],), ("cc",))}
    card = GroupMember(bdf=Bdf("0000:00:03.0"), kind=PciKind.OTHER, driver="ice")
    assert not places_of([gpu(CARDS[0], 0x2331, group=(card,))])[CARDS[0]].viable
    assert not places_of([gpu(CARDS[0], 0x2331, iommu_group=None)])[CARDS[0]].viable


def test_every_error_is_one_of_ours_with_a_code() -> None:
    kinds = PreparationError.__subclasses__()
    assert len({kind(CARDS[0], "x").code for kind in kinds if kind is not GpuHeldError}) == (
        len(kinds) - 1
    )
