"""Boards: which GPUs belong together, what may be done with each, and the groups that are legal.

Pure values. Group sizes and modes are the board's: a Hopper HGX board gives single GPUs in mode
`on`, or all eight with its NVSwitches in `ppcie`; a Blackwell HGX board one or eight in `on`, its
switches outside; cards in slots, and boards of another size or architecture, are given singly.
What a Hopper HGX board does with two or four confidential GPUs is undefined, so that no
configuration makes them legal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from agent.model.gpu import HOST, CcMode, Gpu, GpuState
from agent.model.gpu_boards import GpuBoard, gpu_boards
from agent.model.gpu_models import BLACKWELL, HOPPER
from agent.model.ids import Bdf
from agent.model.iommu_group import judge_group

_FULL = 8  # GPUs of an HGX board
_WHOLE = frozenset({HOPPER, BLACKWELL})  # whose boards are given out as a whole


class Condition(StrEnum):
    """What may be done with a GPU, whoever holds it. A GPU that an enclave holds is `READY`."""

    READY = "ready"
    CLEANING = "cleaning"  # will be ready by itself
    QUARANTINED = "quarantined"  # until a person lifts it
    BUSY = "busy"  # the host uses it
    BROKEN = "broken"  # absent, or not healthy
    UNFIT = "unfit"  # of a kind that cannot be confidential, on a host whose guests are

    @property
    def in_use(self) -> bool:
        """Whether its board is not idle, even where nobody holds it."""
        return self in (Condition.CLEANING, Condition.BUSY)


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU or NVSwitch of a board.

    `mode`: in force now and after a reset; None if they differ or are not known. `bound_with`:
    the GPUs and switches that share its IOMMU group, which can only go to the same enclave.
    `viable`: it has an IOMMU group, and nothing in it is anybody else's. `lacks`: modes that it
    was found unable to be brought to.
    """

    bdf: Bdf
    condition: Condition = Condition.READY
    mode: CcMode | None = None
    numa_node: int | None = None
    viable: bool = True
    bound_with: frozenset[Bdf] = frozenset()
    lacks: frozenset[CcMode] = frozenset()


class Grouping(msgspec.Struct, frozen=True, kw_only=True):
    """A legal number of GPUs, the mode that it needs, and whether the switches go with it."""

    size: int
    mode: CcMode
    with_switches: bool = False


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs that can be given out together. `one_mode`: the mode is set for all of them at once.

    `part`: what people call its GPUs.
    """

    seats: tuple[Seat, ...]
    switches: tuple[Seat, ...] = ()
    groupings: tuple[Grouping, ...] = ()
    one_mode: bool = False
    part: str | None = None


def boards_of(
    gpus: Iterable[Gpu], *, sizes: Collection[int] | None, confidential: bool
) -> tuple[Board, ...]:
    """The boards of a host, from its inventory.

    `sizes`: the group sizes of the configuration, None for those that are legal anyway. All HGX
    GPUs of one kind are one baseboard; of more than eight it is not known which belong together,
    so that they are given singly. Without confidential computing the mode wanted is `off`, which
    a GPU that tells no other is taken to be in: NVML does not tell what is pending.
    """
    found = []
    for board in gpu_boards(gpus):
        groupings = _groupings(board, confidential, sizes or ())
        legal = [grouping for grouping in groupings if sizes is None or grouping.size in sizes]
        unfit = confidential and board.never_confidential
        found.append(
            Board(
                seats=tuple(_seat(gpu, confidential, unfit=unfit) for gpu in board.gpus),
                switches=tuple(_seat(gpu, confidential) for gpu in board.switches),
                groupings=tuple(legal),
                one_mode=board.is_hgx,
                part=board.part.name,
            )
        )
    return tuple(found)


def _groupings(board: GpuBoard, confidential: bool, extra: Collection[int]) -> list[Grouping]:
    hopper, present = board.architecture == HOPPER, len(board.gpus)
    single = CcMode.ON if confidential else CcMode.OFF
    found = [Grouping(size=1, mode=single)]
    if board.is_hgx and present == _FULL and board.architecture in _WHOLE:
        together = CcMode.PPCIE if confidential and hopper else single
        found.append(Grouping(size=_FULL, mode=together, with_switches=hopper))
    if board.is_hgx_hopper and confidential:
        return found
    known = {grouping.size for grouping in found}
    more = sorted({size for size in extra if 1 < size <= present} - known)
    return found + [
        Grouping(size=size, mode=single, with_switches=_takes_switches(board, size))
        for size in more
    ]


def _takes_switches(board: GpuBoard, size: int) -> bool:
    """Whether a group that is the whole board drives its NVSwitches from within the guest."""
    return size == len(board.gpus) and bool(board.switches) and board.architecture != BLACKWELL


_CONDITIONS = {
    GpuState.FREE: Condition.READY,
    GpuState.PREPARING: Condition.CLEANING,
    GpuState.DIRTY: Condition.CLEANING,
    GpuState.UNHEALTHY: Condition.BROKEN,
    GpuState.QUARANTINED: Condition.QUARANTINED,
    GpuState.ABSENT: Condition.BROKEN,
}


def _seat(gpu: Gpu, confidential: bool, *, unfit: bool = False) -> Seat:
    held = gpu.owner is not None and gpu.owner != HOST
    in_use = Condition.READY if held else Condition.BUSY
    condition = _CONDITIONS.get(gpu.state, in_use)
    modes = gpu.cc_mode
    settled = modes.active if modes.active == modes.pending else None
    told_on = {modes.active, modes.pending} - {None, CcMode.OFF}
    group = judge_group(gpu.bdf, gpu.iommu_group, gpu.group)
    return Seat(
        bdf=gpu.bdf,
        condition=Condition.UNFIT if unfit and not held else condition,
        mode=CcMode.OFF if not told_on and not confidential else settled,
        numa_node=gpu.numa_node,
        viable=group.is_viable,
        bound_with=frozenset(group.devices),
    )


def as_recorded(
    boards: tuple[Board, ...],
    unclean: Collection[Bdf],
    modes: Mapping[Bdf, CcMode | None],
    lacking: Mapping[Bdf, frozenset[CcMode]] = MappingProxyType({}),
) -> tuple[Board, ...]:
    """The boards as the store knows better than a look at the host that was a moment ago.

    `unclean`: GPUs that nobody holds and that were not requalified since. `modes`: as last set.
    `lacking`: modes that were found out of reach.
    """
    if not unclean and not modes and not lacking:
        return boards

    def known(seat: Seat) -> Seat:
        seat = msgspec.structs.replace(
            seat, mode=modes.get(seat.bdf, seat.mode), lacks=lacking.get(seat.bdf, seat.lacks)
        )
        if seat.bdf in unclean and seat.condition is Condition.READY:
            return msgspec.structs.replace(seat, condition=Condition.CLEANING)
        return seat

    return tuple(
        msgspec.structs.replace(
            board,
            seats=tuple(map(known, board.seats)),
            switches=tuple(map(known, board.switches)),
        )
        for board in boards
    )


def set_aside(boards: tuple[Board, ...], quarantined: Collection[Bdf]) -> tuple[Board, ...]:
    """The boards with these out of use, even where an enclave still holds them."""

    def judged(seat: Seat) -> Seat:
        if seat.bdf not in quarantined:
            return seat
        return msgspec.structs.replace(seat, condition=Condition.QUARANTINED)

    return tuple(
        msgspec.structs.replace(
            board,
            seats=tuple(map(judged, board.seats)),
            switches=tuple(map(judged, board.switches)),
        )
        for board in boards
    )
