"""What cannot succeed ends after a few tries as a state; what nobody asked for is left alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from agent.capacity.boards import Board, Grouping, Seat, as_recorded
from agent.capacity.groups import blame, pick
from agent.inventory.preparation.errors import (
    BindingError,
    GpuHeldError,
    ModeError,
    ModeNotAppliedError,
    ModeUnsupportedError,
    PreparationError,
    ResetsSpentError,
    ToolMissingError,
    UnqualifiedError,
)
from agent.inventory.preparation.modes import ModeTool
from agent.inventory.preparation.preparer import Preparer
from agent.inventory.preparation.records import count_reset, forgive, word
from agent.inventory.preparation.retries import (
    MODE_TRIES,
    TRIES,
    after_failure,
    is_due,
    pause_s,
    resets_spent,
)
from agent.inventory.problems import problems_of
from agent.model.gpu import RESETS_AN_HOUR, CcMode, Gpu, GpuState
from agent.model.ids import Bdf
from agent.model.preparation import GpuCondition
from agent.model.reasons import ReasonCode
from agent.updates.admission.gpus import gpu_uses
from simulator.pci_kernel import Died
from simulator.rows import instant
from simulator.sysfs_tree import HGX_BUSES, SWITCH, SysfsTree, pcie_boards
from tests.fakes.preparation import ENCLAVE, GpuHost

CARD, OTHER = (Bdf(f"0000:{bus:02x}:00.0") for bus in HGX_BUSES[:2])

AUDIO = Bdf(f"{CARD[:-1]}1")


@pytest.fixture
def host(tmp_path: Path) -> GpuHost:
    return GpuHost(pcie_boards(tmp_path / "sys"), (CARD, OTHER), tmp_path / "proc")


@pytest.fixture
def board(tmp_path: Path) -> GpuHost:
    """Two Hopper GPUs and a switch of one board."""
    tree = SysfsTree(tmp_path / "sys")
    gpus = [Bdf(tree.gpu_behind_port(f"pci0000:{n - 1:02x}", n)) for n in HGX_BUSES[:2]]
    switch = Bdf(tree.gpu_behind_port("pci0000:04", 5, class_code=SWITCH, device=0x22A3))
    return GpuHost(tree, tuple(gpus), tmp_path / "proc", switches=(switch,), one_board=True)


@contextlib.asynccontextmanager
async def kept(shop: Preparer) -> AsyncIterator[None]:
    task = asyncio.create_task(shop.keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def live(host: GpuHost, hours: float) -> None:
    """A daemon with nothing else to do, ten simulated seconds at a time."""
    shop = host.preparer()
    async with kept(shop):
        for _ in range(int(hours * 360)):
            host.clock.advance(10)
            shop.changed.notify()
            await settled()


async def settled() -> None:
    """What was rung for has begun, and has ended."""
    for _ in range(20):
        await asyncio.sleep(0)
    while any(task.get_name().startswith("requalify:") for task in asyncio.all_tasks()):
        await asyncio.sleep(0.001)


def resets(host: GpuHost, bdf: str = CARD) -> int:
    return sum(line == f"reset {bdf}" for line in host.kernel.log)


@dataclass
class Dying:
    """Kills the agent before its second write: of a card that vfio has, the reset is the first."""

    host: GpuHost
    done: bool = False

    def __call__(self) -> None:
        if all(self.host.kernel.drivers()[bdf] == "vfio-pci" for bdf in (CARD, AUDIO)):
            self.done = True
            raise Died


def told(row: GpuCondition) -> list[str]:
    """The codes of the problems that a device of this row is shown with."""
    gpu = Gpu(bdf=row.bdf, state=GpuState.FREE if row.clean else GpuState.DIRTY)

    class Rows:
        def gpu_conditions(self) -> list[GpuCondition]:
            return [row]

        def enclaves(self) -> list[object]:
            return []

        def claims(self) -> list[object]:
            return []

    use = gpu_uses(Rows())[row.bdf]  # type: ignore[arg-type]
    found = problems_of([msgspec.structs.replace(gpu, upkeep=use.upkeep)], None)
    assert all(one.mend for one in found)
    return [one.code for one in found]


async def test_a_mode_that_is_none_is_told_and_set_for_the_next_enclave_and_no_loop(
    host: GpuHost,
) -> None:
    host.kernel.in_mode(CARD, cc="invalid-fix-by-setting")
    await host.leave(CARD)
    await live(host, 1.0)
    assert resets(host) == 1
    row = (await host.rows())[CARD]
    assert (word(row), row.mode) == ("clean", None)
    assert "invalid-fix-by-setting" in (row.mode_told or "")
    assert told(row) == ["gpu_mode_unsettled"]
    assert len(await host.events()) <= 4
    host.kernel.in_mode(CARD, cc="invalid-fix-by-setting")
    await host.claim(CARD)
    await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.ON)
    row = (await host.rows())[CARD]
    assert (row.mode, row.mode_told, told(row)) == (CcMode.ON, None, [])


async def test_a_mode_that_no_reset_applies_ends_in_quarantine_with_its_mend(
    host: GpuHost,
) -> None:
    host.kernel.stubborn.add(CARD)
    await host.claim(CARD)
    for _ in range(MODE_TRIES):
        assert host.quarantined == {}
        with pytest.raises(ModeNotAppliedError, match="failed to switch to CC mode on"):
            await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.ON)  # a restart each time
    assert "no confidential guest can have it" in host.quarantined[CARD]
    await host.abandon()
    done = len(host.kernel.log)
    await live(host, 1.0)
    assert len(host.kernel.log) == done


async def test_a_device_that_the_tool_does_not_know_is_tried_a_few_times_only(
    host: GpuHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.kernel.unknown_to_tool.add(CARD)
    await host.leave(CARD)
    shop = host.preparer()
    when = []
    async with kept(shop):
        for _ in range(120):
            before = resets(host)
            host.clock.advance(10)
            shop.changed.notify()
            await settled()
            if resets(host) > before:
                when.append(host.clock.now().boottime_s)
    assert len(when) == TRIES
    pauses = [later - sooner for sooner, later in pairwise(when)]
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1]
    assert "not known to this version (tried 4 times)" in host.quarantined[CARD]
    assert [event.to for event in await host.events()] == ["dirty", "preparing", "dirty"]
    assert any("gpu given up" in record.message for record in caplog.records)


async def test_a_card_without_any_confidential_mode_is_said_to_be_unfit_at_once(
    host: GpuHost,
) -> None:
    host.kernel.lacking[CARD] = {"cc"}
    await host.leave(CARD)
    await live(host, 1.0)
    assert resets(host) == 1
    assert "no confidential guest can have it" in host.quarantined[CARD]
    assert (await host.rows())[CARD].clean


async def test_a_firmware_without_the_boards_mode_leaves_single_gpus_usable(
    board: GpuHost,
) -> None:
    gpus, switch = board.devices, board.switches[0]
    board.kernel.lacking[gpus[0]] = {"ppcie"}
    await board.claim(*board.all)
    with pytest.raises(ModeUnsupportedError, match="FW update is required"):
        await board.preparer().make_ready(ENCLAVE, board.all, CcMode.PPCIE)
    assert board.quarantined == {}
    row = (await board.rows())[gpus[0]]
    assert [limit.mode for limit in row.limits] == [CcMode.PPCIE]
    assert "gpu_mode_unsupported_ppcie" in told(row)
    await board.abandon()
    await live(board, 0.1)
    await board.claim(gpus[0])
    await board.preparer().make_ready(ENCLAVE, gpus[:1], CcMode.ON)
    rows = await board.rows()
    assert rows[gpus[0]].mode is CcMode.ON

    seats = tuple(Seat(bdf=bdf, mode=CcMode.ON) for bdf in gpus)
    groupings = (
        Grouping(size=1, mode=CcMode.ON),
        Grouping(size=2, mode=CcMode.PPCIE, with_switches=True),
    )
    switches = (Seat(bdf=switch, mode=CcMode.OFF),)
    whole = (Board(seats=seats, switches=switches, groupings=groupings, one_mode=True),)
    assert pick(whole, 2, ()) is not None
    lacking = {bdf: frozenset(one.mode for one in row.limits) for bdf, row in rows.items()}
    known = as_recorded(whole, (), {}, lacking)
    assert pick(known, 2, ()) is None
    assert blame(known, 2, ()) is ReasonCode.GPU_MODE_UNAVAILABLE
    assert pick(known, 1, ()) is not None


async def test_a_person_who_mended_it_has_it_tried_anew(board: GpuHost) -> None:
    gpus = board.devices
    board.kernel.lacking[gpus[0]] = {"ppcie"}
    await board.claim(*board.all)
    with pytest.raises(ModeError):
        await board.preparer().make_ready(ENCLAVE, board.all, CcMode.PPCIE)
    board.kernel.lacking.clear()
    assert await board.store.transact(lambda tx: forgive(tx, gpus[0]))
    assert not await board.store.transact(lambda tx: forgive(tx, gpus[0]))
    assert (await board.rows())[gpus[0]].limits == ()
    await board.preparer().make_ready(ENCLAVE, board.all, CcMode.PPCIE)


async def test_what_somebody_holds_is_waited_for_without_an_event_or_a_touch(
    host: GpuHost,
) -> None:
    await host.leave(CARD)
    host.tree.bind(CARD, "nvidia")
    host.hold(77, "python3", ["/dev/nvidia0"])
    began = len(await host.events())
    await live(host, 1.0)
    assert host.kernel.log == []
    assert len(await host.events()) == began
    row = (await host.rows())[CARD]
    assert "python3" in (row.fault or "")
    assert told(row) == ["gpu_not_prepared"]
    assert host.quarantined == {}


async def test_without_the_tool_nothing_is_touched_and_its_mend_is_told(host: GpuHost) -> None:
    await host.leave(CARD)
    missing = ModeTool("nvidia_gpu_tools.py", run=host.kernel.run, find=lambda _: None)
    shop = host.preparer(tool=missing)
    with pytest.raises(ToolMissingError, match="is not there"):
        await shop.requalify(CARD)
    await host.claim(CARD)
    with pytest.raises(ToolMissingError):
        await shop.make_ready(ENCLAVE, [CARD], CcMode.ON)
    assert host.kernel.log == []
    assert ToolMissingError(CARD, "x", "install it").mend == "install it"


async def test_resets_have_a_budget_of_an_hour_that_restarts_do_not_renew(host: GpuHost) -> None:
    host.confidential = False
    for _ in range(RESETS_AN_HOUR):
        await host.leave(CARD)
        await host.preparer().requalify(CARD)  # by an agent that was just started
    assert resets(host) == RESETS_AN_HOUR
    await host.leave(CARD)
    await live(host, 0.5)
    assert resets(host) == RESETS_AN_HOUR
    row = (await host.rows())[CARD]
    assert "20 times within an hour" in (row.fault or "")
    assert told(row) == ["gpu_not_prepared"]
    with pytest.raises(ResetsSpentError, match="not again before"):
        await host.preparer().examine([CARD])
    await live(host, 0.6)
    assert resets(host) == RESETS_AN_HOUR + 1
    assert (await host.rows())[CARD].clean


async def test_a_person_has_the_resets_of_the_hour_counted_anew(host: GpuHost) -> None:
    host.confidential = False
    for _ in range(RESETS_AN_HOUR):
        await host.leave(CARD)
        await host.preparer().requalify(CARD)
    await host.leave(CARD)
    with pytest.raises(ResetsSpentError) as refused:
        await host.preparer().requalify(CARD)
    assert f"enclave-agent gpus release {CARD}" in refused.value.mend
    assert await host.store.transact(lambda tx: forgive(tx, CARD))
    await host.preparer().requalify(CARD)
    row = (await host.rows())[CARD]
    assert (row.clean, len(row.resets)) == (True, 1)


async def test_a_reset_is_counted_before_it_is_begun(host: GpuHost) -> None:
    await host.leave(CARD)
    await host.store.transact(lambda tx: count_reset(tx, CARD, host.clock.now()))
    host.kernel.before = die_at_reset = Dying(host)
    with pytest.raises(Died):
        await host.preparer().requalify(CARD)
    assert die_at_reset.done
    assert resets(host) == 0
    assert len((await host.rows())[CARD].resets) == 2


async def test_after_a_reboot_only_what_was_used_is_requalified(host: GpuHost) -> None:
    await host.claim(CARD)
    await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.ON)
    await host.abandon()
    host.clock.reboot("another")
    await host.preparer().start()
    host.kernel.log.clear()
    await live(host, 0.1)
    assert any(CARD in line for line in host.kernel.log)
    assert not any(OTHER in line for line in host.kernel.log)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (lambda: UnqualifiedError(CARD, "x"), True),
        (lambda: BindingError(CARD, "x"), False),
        (lambda: ModeError(CARD, "x"), False),
        (lambda: ModeUnsupportedError(CARD, "x", mode=CcMode.ON), True),
        (lambda: GpuHeldError(CARD, ()), False),
    ],
)
def test_what_one_failure_makes_of_a_device(
    error: Callable[[], PreparationError], ends: bool
) -> None:
    row = GpuCondition(bdf=CARD, clean=False, since=instant())
    ending = after_failure(row, error(), ("cc",))
    assert (ending.quarantine is not None) is ends


def test_pauses_grow_and_a_reboot_ends_them() -> None:
    assert [pause_s(n) for n in range(6)] == [0, 10, 60, 300, 300, 300]
    row = GpuCondition(bdf=CARD, clean=False, failures=2, since=instant(0))
    assert not is_due(row, instant(59))
    assert is_due(row, instant(60))
    assert is_due(row, msgspec.structs.replace(instant(1), boot_id="another"))
    spent = msgspec.structs.replace(row, resets=(instant(0),) * RESETS_AN_HOUR)
    assert resets_spent(spent, instant(3599)) is not None
    assert resets_spent(spent, instant(3600)) is None
