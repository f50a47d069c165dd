"""Where each device sits, as preparation needs it: its board and the kinds of mode that it has."""

from __future__ import annotations

from collections.abc import Iterable

from agent.inventory.preparation.records import DevicePlace
from agent.model.gpu import HOST, Gpu, GpuState, HealthAction
from agent.model.gpu_boards import GpuBoard, gpu_boards
from agent.model.ids import Bdf
from agent.model.iommu_group import judge_group

_BOTH = ("cc", "ppcie")


def places_of(gpus: Iterable[Gpu]) -> dict[Bdf, DevicePlace]:
    """From the inventory's list; those that are absent have no place."""
    present = [gpu for gpu in gpus if gpu.state is not GpuState.ABSENT]
    found: dict[Bdf, DevicePlace] = {}
    for board in gpu_boards(present):
        found |= {gpu.bdf: _place(gpu, board) for gpu in (*board.gpus, *board.switches)}
    return found


def _place(gpu: Gpu, board: GpuBoard) -> DevicePlace:
    together = tuple(one.bdf for one in (*board.gpus, *board.switches))
    kinds: tuple[str, ...] = ("cc",)
    if board.is_hgx_hopper:
        kinds = ("ppcie",) if gpu.is_switch else _BOTH
    return DevicePlace(
        board=together if board.is_hgx else (gpu.bdf,),
        mode_kinds=kinds,
        quarantined=gpu.quarantine is not None,
        asks_for_reset=gpu.health.action is HealthAction.RESET and gpu.owner != HOST,
        left_alone=gpu.left_alone,
        viable=judge_group(gpu.bdf, gpu.iommu_group, gpu.group).is_viable,
    )
