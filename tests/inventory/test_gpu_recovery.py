"""A broken GPU is brought back: by itself through its bus, by hand off the bus and on it again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.inventory.port import unsigned
from agent.inventory.preparation.card_identity import CardIdentity, changes, identify
from agent.inventory.preparation.errors import (
    GpuHeldError,
    GpuLeftAloneError,
    GpuOwnedError,
    RecoveryError,
    UnqualifiedError,
)
from agent.inventory.preparation.records import DevicePlace, word
from agent.model.gpu import CcMode
from agent.model.ids import Bdf
from simulator.pci_kernel import Died
from simulator.sysfs_tree import GPU_3D, HGX_BUSES, SysfsTree, hgx_h100, pcie_boards
from tests.fakes.preparation import ENCLAVE, GpuHost

CARD, OTHER = (Bdf(f"0000:{bus:02x}:00.0") for bus in HGX_BUSES[:2])
AUDIO = Bdf(f"{CARD[:-1]}1")
PORT = Bdf("0000:17:01.0")


def lone(tmp_path: Path) -> SysfsTree:
    """Cards of one function, each behind a port of its own."""
    tree = SysfsTree(tmp_path / "sys")
    for bus in HGX_BUSES[:2]:
        tree.gpu_behind_port(f"pci0000:{bus - 1:02x}", bus)
    return tree


@pytest.fixture
def host(tmp_path: Path) -> GpuHost:
    return GpuHost(lone(tmp_path), (CARD, OTHER), tmp_path / "proc", confidential=False)


@pytest.fixture
def cards(tmp_path: Path) -> GpuHost:
    """With audio functions."""
    tree = pcie_boards(tmp_path / "sys")
    return GpuHost(tree, (CARD, OTHER), tmp_path / "proc", confidential=False)


# By itself.


async def test_a_card_that_its_own_reset_does_not_mend_is_reset_by_its_bus(host: GpuHost) -> None:
    host.kernel.sick[CARD] = "bus"
    await host.leave(CARD)
    await host.preparer().requalify(CARD)
    assert host.kernel.log[-4:] == [
        f"reset {CARD}",
        "reset_method bus flr",
        f"reset {CARD}",
        "reset_method flr bus",  # as it was
    ]
    row = (await host.rows())[CARD]
    assert (word(row), len(row.resets)) == ("clean", 2)
    assert host.quarantined == {}


async def test_through_the_port_where_the_kernel_has_a_way_and_the_card_has_more_functions(
    cards: GpuHost,
) -> None:
    cards.tree.put(PORT, "reset_subordinate", "")
    cards.kernel.sick[CARD] = "bus"
    await cards.leave(CARD)
    await cards.preparer().requalify(CARD)
    assert cards.kernel.log[-1] == f"reset_subordinate {PORT}"
    assert word((await cards.rows())[CARD]) == "clean"


async def test_never_where_something_else_is_behind_the_port(host: GpuHost) -> None:
    above = (host.tree.devices / CARD).resolve().parent
    host.tree.add(above, "0000:18:01.0", class_code=0x020000, driver="mlx5_core", group=77)
    host.tree.put(PORT, "reset_subordinate", "")
    host.kernel.sick[CARD] = "bus"
    await host.leave(CARD)
    with pytest.raises(UnqualifiedError):
        await host.preparer().requalify(CARD)
    assert not any("subordinate" in line or "reset_method" in line for line in host.kernel.log)
    assert CARD in host.quarantined


async def test_never_by_a_function_of_the_card_that_a_driver_of_the_hosts_has(
    cards: GpuHost,
) -> None:
    (cards.tree.root / f"kernel/iommu_groups/11/devices/{AUDIO}").unlink()
    (cards.tree.devices / AUDIO / "iommu_group").unlink()
    cards.tree.join(AUDIO, 98)
    cards.tree.put(PORT, "reset_subordinate", "")
    cards.kernel.sick[CARD] = "bus"
    await cards.leave(CARD)
    with pytest.raises(UnqualifiedError):
        await cards.preparer().requalify(CARD)
    assert not any("subordinate" in line for line in cards.kernel.log)


async def test_never_while_an_enclave_runs_on_the_board_in_ppcie(tmp_path: Path) -> None:
    eight = tuple(Bdf(f"0000:{bus:02x}:00.0") for bus in HGX_BUSES)
    host = GpuHost(hgx_h100(tmp_path / "sys"), eight, tmp_path / "proc", one_board=True)
    await host.claim(*eight[1:])
    for bdf in eight:
        host.kernel.in_mode(bdf, ppcie="on")
    shop = host.preparer()
    await shop.make_ready(ENCLAVE, eight[1:], CcMode.PPCIE)
    host.kernel.log.clear()
    host.kernel.sick[eight[0]] = "bus"
    await host.leave(eight[0], holder="bbbbbbbb")
    with pytest.raises(UnqualifiedError):
        await shop.requalify(eight[0])
    assert not any("reset_method" in line for line in host.kernel.log)
    assert not any(bdf in line for bdf in eight[1:] for line in host.kernel.log)
    with pytest.raises(GpuOwnedError, match="ppcie"):
        await shop.recover(eight[0], unsigned)


async def test_what_neither_mends_is_quarantined(host: GpuHost) -> None:
    host.kernel.sick[CARD] = "rescan"
    await host.leave(CARD)
    with pytest.raises(UnqualifiedError):
        await host.preparer().requalify(CARD)
    assert "all ones" in host.quarantined[CARD]


# By hand.


async def test_a_card_is_taken_off_and_found_again_through_its_port_alone(host: GpuHost) -> None:
    host.kernel.sick[CARD] = "rescan"
    host.tree.bind(CARD, "nvidia")
    host.tree.fall_off(CARD)
    shop = host.preparer()
    await shop.recover(CARD, unsigned)
    assert host.kernel.log == [
        f"override {CARD} -",
        f"unbind {CARD} nvidia",
        "drivers_autoprobe 0",
        f"remove {CARD}",
        f"rescan {PORT}",
        "drivers_autoprobe 1",
    ]
    assert host.kernel.drivers()[CARD] is None  # nobody grabbed it meanwhile
    assert host.expected == [{PORT, CARD}]
    assert [event.to for event in await host.events()] == ["preparing", "recovering", "dirty"]
    host.tree.put(CARD, "current_link_width", "16")
    await shop.requalify(CARD)
    assert word((await host.rows())[CARD]) == "clean"
    assert host.quarantined == {}


async def test_all_functions_of_the_card_go_and_come_back(cards: GpuHost) -> None:
    await cards.preparer().recover(CARD, unsigned)
    assert [line for line in cards.kernel.log if line.startswith("remove")] == [
        f"remove {AUDIO}",
        f"remove {CARD}",
    ]
    assert cards.kernel.drivers()[AUDIO] is None


async def test_one_that_does_not_come_back_is_quarantined_and_the_bus_is_as_before(
    host: GpuHost,
) -> None:
    host.tree.put(host.tree.root / "bus/pci", "drivers_autoprobe", "0")  # the operator's choice
    host.kernel.gone.add(CARD)
    with pytest.raises(RecoveryError, match=f"its port {PORT} finds nothing"):
        await host.preparer().recover(CARD, unsigned)
    assert "did not come back" in host.quarantined[CARD]
    assert (host.tree.root / "bus/pci/drivers_autoprobe").read_text() == "0\n"


def another_card(host: GpuHost, bdf: str) -> None:
    host.tree.put(bdf, "device", "0x2331")


def without_a_group(host: GpuHost, bdf: str) -> None:
    (host.tree.devices / bdf / "iommu_group").unlink()


def without_an_address(host: GpuHost, bdf: str) -> None:
    text = (host.tree.devices / bdf / "resource").read_text().splitlines()
    text[2] = "0x0000000000000000 0x0000001fffffffff 0x000000002014220c"
    host.tree.put(bdf, "resource", "\n".join(text))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (another_card, "another kind of device"),
        (without_a_group, "no IOMMU group any more"),
        (without_an_address, "no address was found for its BAR 2"),
    ],
)
async def test_one_that_comes_back_as_another_is_quarantined(
    host: GpuHost, change: object, why: str
) -> None:
    host.kernel.found = lambda bdf: change(host, bdf)  # type: ignore[operator]
    with pytest.raises(RecoveryError, match=why):
        await host.preparer().recover(CARD, unsigned)
    assert why in host.quarantined[CARD]


async def test_nothing_is_taken_off_that_somebody_has(host: GpuHost) -> None:
    shop = host.preparer()
    await host.claim(CARD)
    with pytest.raises(GpuOwnedError):
        await shop.recover(CARD, unsigned)
    await host.abandon()
    host.tree.bind(CARD, "nvidia")
    host.hold(5, "python3", ["/dev/nvidia0"])
    with pytest.raises(GpuHeldError):
        await shop.recover(CARD, unsigned)
    place = DevicePlace((OTHER,), left_alone="gpus.exclude names it")
    left = host.preparer(place_of=lambda _: place)
    with pytest.raises(GpuLeftAloneError, match=r"gpus\.exclude"):
        await left.recover(OTHER, unsigned)
    above = (host.tree.devices / OTHER).resolve().parent
    host.tree.add(above, "0000:2a:01.0", class_code=GPU_3D, driver="nvidia", group=78)
    with pytest.raises(RecoveryError, match=r"shares its port with 0000:2a:01\.0"):
        await shop.recover(OTHER, unsigned)
    assert host.kernel.log == []
    assert host.quarantined == {}


async def test_killed_between_any_two_steps_of_a_recovery_it_ends_the_same(
    tmp_path: Path,
) -> None:
    number, deaths = 0, 0
    while True:
        number += 1
        home = tmp_path / str(number)
        home.mkdir()
        host = GpuHost(lone(home), (CARD, OTHER), home / "proc", confidential=False)
        host.kernel.sick[CARD] = "rescan"
        died = await _recovered(host, die_at=number)
        assert (host.tree.root / "bus/pci/drivers_autoprobe").read_text() == "1\n", number
        assert (host.tree.devices / CARD).exists(), number
        await host.preparer().recover(CARD, unsigned)
        await host.preparer().requalify(CARD)
        assert word((await host.rows())[CARD]) == "clean"
        if not died:
            break
        deaths += 1
    assert deaths >= 6


async def _recovered(host: GpuHost, die_at: int) -> bool:
    """Whether it was killed; it was started again then."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps >= die_at:
            raise Died

    for place in (host.kernel, host.store):
        place.before = step
    died = False
    try:
        await host.preparer().recover(CARD, unsigned)
    except* Died:
        died = True
    for place in (host.kernel, host.store):
        place.before = lambda: None
    if died:
        await host.preparer().start()
    return died


async def test_a_reboot_in_the_middle_leaves_nothing_to_finish(host: GpuHost) -> None:
    assert await _killed_at_remove(host)
    host.tree.put_back(CARD, *host.kernel._off.pop(CARD))
    host.clock.reboot("another")
    host.kernel.log.clear()
    await host.preparer().start()
    assert host.kernel.log == []


async def _killed_at_remove(host: GpuHost) -> bool:
    def die_after() -> None:
        if any(line.startswith("remove") for line in host.kernel.log):
            raise Died

    host.kernel.before = host.store.before = die_after
    died = False
    try:
        await host.preparer().recover(CARD, unsigned)
    except* Died:
        died = True
    host.kernel.before = host.store.before = lambda: None
    return died


async def test_one_that_is_gone_after_a_crash_is_quarantined_at_the_next_start(
    host: GpuHost,
) -> None:
    host.kernel.gone.add(CARD)
    assert await _killed_at_remove(host)
    await host.preparer().start()
    assert "did not come back" in host.quarantined[CARD]
    assert (host.tree.root / "bus/pci/drivers_autoprobe").read_text() == "1\n"


async def test_a_caller_that_goes_away_leaves_the_recovery_to_its_end(host: GpuHost) -> None:
    host.kernel.lag_s = 0.02
    task = asyncio.create_task(host.preparer().recover(CARD, unsigned))
    await asyncio.sleep(0.03)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5):
        while not any(line == "drivers_autoprobe 1" for line in host.kernel.log):
            await asyncio.sleep(0.01)
    assert (host.tree.devices / CARD).exists()


# Which card it is.


def test_a_serial_number_is_read_from_the_extended_capabilities(tmp_path: Path) -> None:
    tree = lone(tmp_path)
    space = bytearray(4096)
    space[0x100:0x104] = (0x0001 | 0x140 << 20).to_bytes(4, "little")
    space[0x140:0x144] = (0x0003 | 0x000 << 20).to_bytes(4, "little")
    space[0x144:0x14C] = bytes.fromhex("0102030405060708")
    path = tree.devices / CARD
    (path / "config").write_bytes(bytes(space))
    assert identify(path).serial == "0807060504030201"
    (path / "config").write_bytes(b"\xff" * 4096)
    assert identify(path).serial is None
    assert identify(path).bars[:3] == (16 << 20, 0, 131072 << 20)


def test_what_is_not_known_is_not_compared() -> None:
    one = CardIdentity(ids=(1, 2, 3, 4), iommu_group=5, bars=(1, 0), serial="aa")
    dead = CardIdentity(ids=(1, 2, 3, 4), iommu_group=6, bars=(1, 0), serial=None)
    assert changes(dead, one) == ()
    assert changes(one, dead) == ()
    other = CardIdentity(ids=(1, 2, 3, 4), iommu_group=5, bars=(2, 0), serial="bb")
    assert len(changes(one, other)) == 2
