"""Boards of GPUs for the capacity room: plain ones, and those of known machines."""

from __future__ import annotations

from collections.abc import Iterable

from agent.capacity.boards import Board, Condition, Grouping, Seat
from agent.model.gpu import CcMode
from agent.model.ids import Bdf


def bdf(number: int) -> Bdf:
    return Bdf(f"0000:{number:02x}:00.0")


def cards(
    ready: Iterable[Bdf] = (),
    *,
    cleaning: Iterable[Bdf] = (),
    quarantined: Iterable[Bdf] = (),
    sizes: Iterable[int] = (1,),
) -> tuple[Board, ...]:
    """Cards in slots, all in the right mode; no board for none."""
    seats = [
        Seat(bdf=one, condition=condition, mode=CcMode.ON)
        for condition, several in (
            (Condition.READY, ready),
            (Condition.CLEANING, cleaning),
            (Condition.QUARANTINED, quarantined),
        )
        for one in several
    ]
    groupings = tuple(Grouping(size=size, mode=CcMode.ON) for size in sizes)
    return (Board(seats=tuple(seats), groupings=groupings),) if seats else ()


def hgx_hopper(mode: CcMode | None = CcMode.ON, gpus: int = 8, switches: int = 4) -> Board:
    """One GPU in `on`, or all with the switches in `ppcie`."""
    return Board(
        seats=tuple(Seat(bdf=bdf(n), mode=mode, numa_node=n // 4) for n in range(1, gpus + 1)),
        switches=tuple(Seat(bdf=bdf(0x80 + n), mode=mode) for n in range(switches)),
        groupings=(
            Grouping(size=1, mode=CcMode.ON),
            Grouping(size=gpus, mode=CcMode.PPCIE, with_switches=True),
        ),
        one_mode=True,
    )
