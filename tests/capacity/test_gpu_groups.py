"""The rules of the boards, one by one."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest

from agent.capacity.accounts import Accounts
from agent.capacity.boards import Board, Condition, Grouping, Seat, as_recorded, boards_of
from agent.capacity.decision import decide
from agent.capacity.groups import Pick, blame, pick
from agent.capacity.supply import Admission, Holding, HostSupply, Question
from agent.model.clock import Instant
from agent.model.gpu import CcMode, CcModes, Gpu, GpuState
from agent.model.ids import Bdf, DeploymentName, EnclaveId
from agent.model.pci import GroupMember, PciKind
from agent.model.reasons import DecidedStrategy, ReasonCode, Strategy
from agent.model.resources import Demand
from simulator.boards import bdf, cards, hgx_hopper

NOW = Instant(boot_id="b", boottime_s=100.0, wall=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
API, OTHER = DeploymentName("api"), DeploymentName("other")
EIGHT = tuple(map(bdf, range(1, 9)))
OLD = EnclaveId("old")


def held(gpus: tuple[Bdf, ...], deployment: DeploymentName = OTHER, name: str = "x") -> Holding:
    return Holding(
        enclave=EnclaveId(name), deployment=deployment, memory_mib=1, vcpus=1, gpus=gpus
    )


def ask(
    gpus: int,
    boards: tuple[Board, ...],
    *holdings: Holding,
    insisted: Strategy | None = None,
    **supply: object,
) -> Admission:
    host = HostSupply(
        memory_mib=100_000,
        vcpus=100,
        addresses=tuple(f"10.0.0.{n}" for n in range(2, 30)),
        disk_free_mib=0,
        boards=boards,
        **supply,
    )
    own = tuple(one.enclave for one in holdings if one.deployment == API)
    question = Question(
        demand=Demand(memory_mib=1, vcpus=1, gpus=gpus),
        deployment=API,
        own=own,
        insisted=insisted,
    )
    return decide(question, Accounts(host, holdings=holdings, leases=(), now=NOW))


def codes(answer: Admission) -> list[ReasonCode]:
    return [reason.code for reason in answer.decision.reasons]


def change(board: Board, number: int, **changes: object) -> Board:
    """The board with one seat changed; seats count from 0, switches after them."""
    seats = [*board.seats, *board.switches]
    seats[number] = msgspec.structs.replace(seats[number], **changes)
    split = len(board.seats)
    return msgspec.structs.replace(
        board, seats=tuple(seats[:split]), switches=tuple(seats[split:])
    )


def gpu(number: int, device: int, **changes: object) -> Gpu:
    values = {
        "architecture": "hopper",
        "iommu_group": number,
        "state": GpuState.FREE,
        "cc_mode": CcModes(active=CcMode.ON, pending=CcMode.ON),
    }
    return Gpu(bdf=bdf(number), device=device, **{**values, **changes})


def hgx_h100(count: int = 8) -> list[Gpu]:
    switches = [gpu(0x80 + n, 0x22A3, is_switch=True) for n in range(4)]
    return [*(gpu(n, 0x2330) for n in range(1, count + 1)), *switches]


def sizes(boards: tuple[Board, ...]) -> list[tuple[int, CcMode, bool]]:
    return [(g.size, g.mode, g.with_switches) for board in boards for g in board.groupings]


def test_a_hopper_board_gives_one_gpu_in_on_or_all_eight_with_the_switches_in_ppcie() -> None:
    (board,) = boards_of(hgx_h100(), sizes=None, confidential=True)
    assert board.one_mode
    assert len(board.switches) == 4
    wanted = [(1, CcMode.ON, False), (8, CcMode.PPCIE, True)]
    assert sizes((board,)) == wanted
    # two and four are undefined there: no configuration makes them legal
    assert sizes(boards_of(hgx_h100(), sizes=(1, 2, 4, 8), confidential=True)) == wanted
    assert sizes(boards_of(hgx_h100(), sizes=(1,), confidential=True)) == wanted[:1]


def test_boards_of_two_and_four_and_older_ones_give_single_gpus() -> None:
    single = [(1, CcMode.ON, False)]
    for count in (2, 4):
        gpus = [gpu(n, 0x2339) for n in range(1, count + 1)]
        (board,) = boards_of(gpus, sizes=None, confidential=True)
        assert (sizes((board,)), board.one_mode) == (single, True)
    pair = [gpu(n, 0x2321) for n in (1, 2)]  # two cards and the bridge between them
    assert sizes(boards_of(pair, sizes=None, confidential=True)) == single
    assert sizes(boards_of(pair, sizes=(1, 2), confidential=True)) == [
        *single,
        (2, CcMode.ON, False),
    ]
    ampere = [gpu(n, 0x20B2) for n in range(1, 9)]
    switches = [gpu(0x80 + n, 0x1AF1, is_switch=True) for n in range(6)]
    assert sizes(boards_of([*ampere, *switches], sizes=None, confidential=False)) == [
        (1, CcMode.OFF, False)
    ]
    configured = boards_of([*ampere, *switches], sizes=(1, 4, 8), confidential=False)
    assert sizes(configured) == [
        (1, CcMode.OFF, False),
        (4, CcMode.OFF, False),
        (8, CcMode.OFF, True),
    ]


@pytest.mark.parametrize("device", [0x2324, 0x232C, 0x235F, 0x5A5A])
def test_a_part_that_few_know_beside_nvswitches_keeps_one_mode_for_all(device: int) -> None:
    switches = [gpu(0x80 + n, 0x22A3, is_switch=True) for n in range(4)]
    off = CcModes(active=CcMode.OFF, pending=CcMode.OFF)
    gpus = [gpu(n, device, cc_mode=off) for n in range(1, 9)]
    boards = boards_of([*gpus, *switches], sizes=None, confidential=True)
    assert sizes(boards) == [(1, CcMode.ON, False), (8, CcMode.PPCIE, True)]
    # its mode is nobody's to change while one of it is somebody's
    assert pick(boards, 1, {bdf(1)}) is None
    assert blame(boards, 1, {bdf(1)}) is ReasonCode.MODE_SWITCH_NEEDED


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0x26B9, "NVIDIA L40S"),
        (0x20B2, "NVIDIA A100 SXM 80 GB"),
        (0x2342, "NVIDIA GH200"),
        (0x2684, "a GPU of its age"),
    ],
)
def test_a_part_that_cannot_be_confidential_is_refused_with_that_reason(
    device: int, name: str
) -> None:
    one = gpu(1, device, cc_mode=CcModes(), state=GpuState.DIRTY)
    answer = ask(1, boards_of([one], sizes=None, confidential=True))
    (reason,) = answer.decision.reasons
    assert reason.code is ReasonCode.GPUS_NOT_CONFIDENTIAL
    assert reason.detail == f"1 GPUs needed, 0 free; {name} cannot be confidential"
    assert answer.decision.retry_after_s is None  # waiting does not mend it
    assert pick(boards_of([gpu(1, device)], sizes=None, confidential=False), 1, ()) is not None


def test_beside_a_part_that_cannot_be_confidential_the_others_are_given() -> None:
    mixed = boards_of([gpu(1, 0x26B9), gpu(2, 0x2331)], sizes=None, confidential=True)
    assert ask(1, mixed).decision.gpus == (bdf(2),)
    held_one = ask(1, mixed, held((bdf(2),)))
    assert codes(held_one) == [ReasonCode.GPUS_NOT_CONFIDENTIAL]


@pytest.mark.parametrize("count", [7, 9])
def test_a_board_that_is_not_whole_gives_single_gpus_only(count: int) -> None:
    assert sizes(boards_of(hgx_h100(count), sizes=None, confidential=True)) == [
        (1, CcMode.ON, False)
    ]


def test_a_blackwell_board_keeps_its_mode_and_its_switches_and_other_sizes_are_configured() -> (
    None
):
    gpus = [gpu(n, 0x2901, architecture="blackwell") for n in range(1, 9)]
    assert sizes(boards_of(gpus, sizes=None, confidential=True)) == [
        (1, CcMode.ON, False),
        (8, CcMode.ON, False),
    ]
    configured = boards_of(gpus, sizes=(1, 2, 4, 8), confidential=True)
    assert [size for size, _, _ in sizes(configured)] == [1, 8, 2, 4]


def test_cards_in_slots_are_given_singly_and_each_has_its_own_mode() -> None:
    (board,) = boards_of([gpu(1, 0x2331), gpu(2, 0x2331)], sizes=None, confidential=True)
    assert sizes((board,)) == [(1, CcMode.ON, False)]
    assert not board.one_mode


def test_without_confidential_computing_the_mode_is_off_and_silence_means_off() -> None:
    as_nvml_tells = CcModes(active=CcMode.OFF)
    turning_on = CcModes(active=CcMode.OFF, pending=CcMode.ON)
    gpus = [
        gpu(1, 0x2331, cc_mode=CcModes()),
        gpu(2, 0x2331),
        gpu(3, 0x2331, cc_mode=as_nvml_tells),
        gpu(4, 0x2331, cc_mode=turning_on),
    ]
    (board,) = boards_of(gpus, sizes=None, confidential=False)
    assert sizes((board,)) == [(1, CcMode.OFF, False)]
    assert [seat.mode for seat in board.seats] == [CcMode.OFF, CcMode.ON, CcMode.OFF, None]


@pytest.mark.parametrize(
    ("changes", "condition"),
    [
        ({}, Condition.READY),
        ({"state": GpuState.IN_USE, "owner": "aaaaaaaa"}, Condition.READY),
        ({"state": GpuState.IN_USE, "owner": "host"}, Condition.BUSY),
        ({"state": GpuState.DIRTY}, Condition.CLEANING),
        ({"state": GpuState.PREPARING}, Condition.CLEANING),
        ({"state": GpuState.UNHEALTHY}, Condition.BROKEN),
        ({"state": GpuState.ABSENT}, Condition.BROKEN),
        ({"state": GpuState.QUARANTINED}, Condition.QUARANTINED),
    ],
)
def test_what_may_be_done_with_a_gpu_follows_from_its_state(
    changes: dict[str, object], condition: Condition
) -> None:
    (board,) = boards_of([gpu(1, 0x2331, **changes)], sizes=None, confidential=True)
    assert board.seats[0].condition is condition


@pytest.mark.parametrize(
    ("kind", "driver", "viable"),
    [
        (PciKind.OTHER, "ice", False),
        (PciKind.OTHER, None, True),
        (PciKind.OTHER, "vfio-pci", True),
        (PciKind.OTHER, "pci-stub", True),
        (PciKind.AUDIO, "snd_hda_intel", False),  # of another card than the GPU's
        (PciKind.BRIDGE, "pcieport", True),
        (PciKind.BRIDGE, "lpc_ich", False),
        (PciKind.VIRTUAL, "nvidia", False),
        (PciKind.VIRTUAL, None, True),
        (PciKind.FOREIGN_GPU, "amdgpu", False),
        (PciKind.FOREIGN_GPU, "vfio-pci", True),
    ],
)
def test_a_group_is_judged_by_who_holds_its_members(
    kind: PciKind, driver: str | None, viable: bool
) -> None:
    group = tuple(GroupMember(bdf=bdf(n), kind=PciKind.GPU, driver=None) for n in (1, 2))
    other = GroupMember(bdf=bdf(9), kind=kind, driver=driver)
    (board,) = boards_of([gpu(1, 0x2331, group=(*group, other))], sizes=None, confidential=True)
    assert board.seats[0].viable is viable
    assert board.seats[0].bound_with == {bdf(2)}
    (none,) = boards_of([gpu(1, 0x2331, iommu_group=None)], sizes=None, confidential=True)
    assert not none.seats[0].viable


def test_the_whole_board_takes_its_switches_along_and_is_brought_to_its_mode() -> None:
    answer = ask(8, (hgx_hopper(CcMode.ON),))
    assert answer.grant is not None
    assert answer.grant.gpus == EIGHT
    assert len(answer.grant.switches) == 4
    assert answer.grant.gpu_mode is CcMode.PPCIE


def test_the_mode_is_switched_only_while_the_whole_board_is_idle() -> None:
    ppcie = (hgx_hopper(CcMode.PPCIE),)
    assert ask(1, ppcie).decision.strategy is DecidedStrategy.FRESH
    assert codes(ask(1, ppcie, held(EIGHT[:1]))) == [ReasonCode.MODE_SWITCH_NEEDED]
    busy = (change(ppcie[0], 3, condition=Condition.BUSY),)
    assert codes(ask(1, busy)) == [ReasonCode.MODE_SWITCH_NEEDED]
    single = (change(hgx_hopper(CcMode.ON), 0, mode=None),)
    answer = ask(1, single, held(EIGHT[1:2]))
    assert answer.decision.gpus == EIGHT[2:3]  # one that is in the right mode already


def test_a_board_that_waits_for_a_cleaning_is_waited_for_and_not_blamed_on_its_mode() -> None:
    board = change(hgx_hopper(CcMode.PPCIE), 2, condition=Condition.CLEANING)
    answer = ask(1, (board,), cleaning_s=41.0)
    assert codes(answer) == [ReasonCode.GPUS_DIRTY]
    assert answer.decision.retry_after_s == 41


def test_an_update_of_the_whole_board_stops_the_old_first() -> None:
    answer = ask(8, (hgx_hopper(CcMode.PPCIE),), held(EIGHT, API, "old"))
    assert answer.decision.strategy is DecidedStrategy.STOP_THEN_START
    assert codes(answer) == [ReasonCode.GPUS_INSUFFICIENT]
    assert answer.grant is not None
    assert answer.grant.gpus == EIGHT


def test_from_one_gpu_to_eight_the_mode_is_switched_after_the_stop() -> None:
    board = (hgx_hopper(CcMode.ON),)
    answer = ask(8, board, held(EIGHT[:1], API, "old"))
    assert answer.decision.strategy is DecidedStrategy.STOP_THEN_START
    assert answer.grant is not None
    assert answer.grant.gpu_mode is CcMode.PPCIE
    others = ask(8, board, held(EIGHT[:1], API, "old"), held(EIGHT[7:], OTHER, "y"))
    assert codes(others) == [ReasonCode.GPUS_INSUFFICIENT]


def test_a_passing_shortage_does_not_become_an_outage() -> None:
    board = change(hgx_hopper(CcMode.ON), 1, condition=Condition.CLEANING)
    others = held(EIGHT[2:], OTHER, "y")
    answer = ask(1, (board,), held(EIGHT[:1], API, "old"), others)
    assert codes(answer) == [ReasonCode.GPUS_DIRTY]
    assert answer.decision.retry_after_s is not None
    insisted = ask(
        1, (board,), held(EIGHT[:1], API, "old"), others, insisted=Strategy.STOP_THEN_START
    )
    assert insisted.decision.strategy is DecidedStrategy.STOP_THEN_START


def test_a_missing_or_taken_switch_leaves_single_gpus_only() -> None:
    board = hgx_hopper(CcMode.PPCIE)
    lame = change(board, 8, condition=Condition.BROKEN)
    assert codes(ask(8, (lame,))) == [ReasonCode.GPUS_INSUFFICIENT]
    assert codes(ask(8, (msgspec.structs.replace(board, switches=()),))) == [
        ReasonCode.GPUS_INSUFFICIENT
    ]
    assert ask(1, (lame,)).decision.strategy is DecidedStrategy.FRESH


def test_two_gpus_of_one_iommu_group_are_not_given_to_two() -> None:
    pair = [bdf(1), bdf(2)]
    seats = [Seat(bdf=one, mode=CcMode.ON, bound_with=frozenset(pair) - {one}) for one in pair]
    singly = Board(seats=tuple(seats), groupings=(Grouping(size=1, mode=CcMode.ON),))
    assert codes(ask(1, (singly,))) == [ReasonCode.IOMMU_GROUP_NOT_VIABLE]
    both = msgspec.structs.replace(singly, groupings=(Grouping(size=2, mode=CcMode.ON),))
    assert ask(2, (both,)).decision.gpus == tuple(pair)


def test_quarantine_is_named_where_lifting_it_would_help() -> None:
    assert codes(ask(1, cards(quarantined=[bdf(1)]))) == [ReasonCode.GPUS_QUARANTINED]
    busy = cards(quarantined=[bdf(1)], sizes=(1, 2))
    assert codes(ask(2, busy)) == [ReasonCode.GPUS_INSUFFICIENT]


def test_an_illegal_number_is_told_with_the_legal_ones() -> None:
    answer = ask(4, (hgx_hopper(),))
    assert codes(answer) == [ReasonCode.GPU_GROUP_ILLEGAL]
    assert "legal sizes: 1, 8" in answer.decision.reasons[0].detail


def test_the_nearest_gpus_are_chosen_then_the_first() -> None:
    seats = tuple(
        Seat(bdf=bdf(n), mode=CcMode.ON, numa_node=node)
        for n, node in ((1, 0), (2, 1), (3, 2), (4, 1), (5, None))
    )
    board = Board(seats=seats, groupings=(Grouping(size=2, mode=CcMode.ON),))
    distances = ((10, 32, 12), (32, 10, 32), (12, 32, 10))
    near = pick((board,), 2, (), distances)
    assert near == Pick(gpus=(bdf(2), bdf(4)), mode=CcMode.ON)
    without = pick((board,), 2, {bdf(4)}, distances)
    assert without is not None
    assert without.gpus == (bdf(1), bdf(3))


def test_what_the_store_knows_overrides_an_older_look() -> None:
    boards = (hgx_hopper(None),)
    known = as_recorded(boards, {EIGHT[0]}, {one: CcMode.ON for one in EIGHT})
    assert known[0].seats[0].condition is Condition.CLEANING
    assert ask(1, known).decision.gpus == EIGHT[1:2]
    assert as_recorded(boards, (), {}) is boards
