"""Which GPUs: the best legal group that can be had, or what stands in its way. Pure.

A group can be had if all of it is ready and nobody's, its IOMMU groups are viable and whole, and
its mode is the right one or may be set: only while the whole board is idle. The best is the one
that needs no change of mode; then the one whose GPUs are nearest to each other; then the first by
BDF.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from enum import Enum, auto
from itertools import combinations

import msgspec

from agent.capacity.boards import Board, Condition, Grouping, Seat
from agent.model.gpu import CcMode
from agent.model.ids import Bdf
from agent.model.reasons import ReasonCode

NumaDistances = tuple[tuple[int, ...], ...]
_FAR = 255  # what the kernel calls unreachable (ACPI SLIT)


class Pick(msgspec.Struct, frozen=True, kw_only=True):
    """A group. `set_mode`: the board must be brought to its `mode` first."""

    gpus: tuple[Bdf, ...] = ()
    switches: tuple[Bdf, ...] = ()
    mode: CcMode | None = None
    set_mode: bool = False


class Lift(Enum):
    """An obstacle that is imagined away, to learn whether it is the one."""

    CLEANING = auto()
    MODE = auto()
    IOMMU = auto()
    LIMIT = auto()
    QUARANTINE = auto()
    UNFIT = auto()


# Each is blamed if the group could be had without it and those before it.
_BLAME = (
    (Lift.CLEANING, ReasonCode.GPUS_DIRTY),
    (Lift.MODE, ReasonCode.MODE_SWITCH_NEEDED),
    (Lift.IOMMU, ReasonCode.IOMMU_GROUP_NOT_VIABLE),
    (Lift.LIMIT, ReasonCode.GPU_MODE_UNAVAILABLE),
    (Lift.QUARANTINE, ReasonCode.GPUS_QUARANTINED),
    (Lift.UNFIT, ReasonCode.GPUS_NOT_CONFIDENTIAL),
)


def legal_sizes(boards: Sequence[Board]) -> frozenset[int]:
    """Every number of GPUs that some board gives out."""
    return frozenset(grouping.size for board in boards for grouping in board.groupings)


def pick(
    boards: Sequence[Board],
    size: int,
    taken: Collection[Bdf],
    distances: NumaDistances = (),
    *,
    preferred: Collection[Bdf] = (),
    lifted: Collection[Lift] = (),
) -> Pick | None:
    """The best group of that size; None if there is none. `preferred` GPUs win if they do."""
    if size == 0:
        return Pick()
    best: tuple[tuple[bool, bool, int, tuple[Bdf, ...]], Pick] | None = None
    for board in boards:
        for grouping in board.groupings:
            if grouping.size != size:
                continue
            for seats, found in _candidates(board, grouping, taken, lifted):
                promised = frozenset(found.gpus) == frozenset(preferred)
                order = (not promised, found.set_mode, _spread(seats, distances), found.gpus)
                if best is None or order < best[0]:
                    best = order, found
    return best[1] if best else None


def blame(boards: Sequence[Board], size: int, taken: Collection[Bdf]) -> ReasonCode:
    """Why there is no group of that size: the first obstacle without which there would be one."""
    lifted: list[Lift] = []
    for obstacle, code in _BLAME:
        lifted.append(obstacle)
        if pick(boards, size, taken, lifted=lifted) is not None:
            return code
    return ReasonCode.GPUS_INSUFFICIENT


def _candidates(
    board: Board, grouping: Grouping, taken: Collection[Bdf], lifted: Collection[Lift]
) -> Iterator[tuple[Sequence[Seat], Pick]]:
    usable = {Condition.READY}
    usable |= {Condition.CLEANING} if Lift.CLEANING in lifted else set()
    usable |= {Condition.QUARANTINED} if Lift.QUARANTINE in lifted else set()
    usable |= {Condition.UNFIT} if Lift.UNFIT in lifted else set()

    def can_be_had(seat: Seat) -> bool:
        return seat.condition in usable and seat.bdf not in taken

    switches = board.switches if grouping.with_switches else ()
    if grouping.with_switches and not (switches and all(map(can_be_had, switches))):
        return
    idle = not board.one_mode or _is_idle(board, taken, usable)
    for seats in combinations(filter(can_be_had, board.seats), grouping.size):
        group = (*seats, *switches)
        if Lift.IOMMU not in lifted and not _is_viable(group):
            continue
        if Lift.LIMIT not in lifted and any(grouping.mode in seat.lacks for seat in group):
            continue
        in_mode = all(seat.mode is grouping.mode for seat in group)
        if in_mode or idle or Lift.MODE in lifted:
            yield (
                seats,
                Pick(
                    gpus=tuple(seat.bdf for seat in seats),
                    switches=tuple(seat.bdf for seat in switches),
                    mode=grouping.mode,
                    set_mode=not in_mode,
                ),
            )


def _is_idle(board: Board, taken: Collection[Bdf], usable: Collection[Condition]) -> bool:
    """Whether nothing of it is anybody's, or being worked on."""
    return not any(
        seat.bdf in taken or (seat.condition.in_use and seat.condition not in usable)
        for seat in (*board.seats, *board.switches)
    )


def _is_viable(group: Sequence[Seat]) -> bool:
    members = {seat.bdf for seat in group}
    return all(seat.viable and seat.bound_with <= members for seat in group)


def _spread(seats: Sequence[Seat], distances: NumaDistances) -> int:
    """The largest distance between two of them, as the kernel's table has it."""
    pairs = combinations([seat.numa_node for seat in seats], 2)
    return max((_distance(a, b, distances) for a, b in pairs), default=0)


def _distance(a: int | None, b: int | None, distances: NumaDistances) -> int:
    if a is None or b is None:
        return _FAR
    try:
        return distances[a][b]
    except IndexError:
        return 0 if a == b else _FAR
