"""Which GPUs and switches sit on one board. Pure.

All HGX GPUs of one kind on a host are one baseboard, and the NVSwitches that PCI shows are a
Hopper baseboard's: Blackwell's show none of that class. Cards in slots share only their kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import msgspec

from agent.model.gpu import Gpu
from agent.model.gpu_models import GPU_MODELS, Form

HOPPER = "hopper"


class GpuBoard(msgspec.Struct, frozen=True, kw_only=True):
    """`is_hgx`: one baseboard, whose mode is set as a whole. Else cards, each by itself."""

    gpus: tuple[Gpu, ...]
    switches: tuple[Gpu, ...] = ()
    is_hgx: bool = False
    architecture: str | None = None

    @property
    def is_hgx_hopper(self) -> bool:
        """Whether it has the mode `ppcie`, with its switches."""
        return self.is_hgx and self.architecture == HOPPER


def gpu_boards(gpus: Iterable[Gpu]) -> tuple[GpuBoard, ...]:
    """By kind of board and GPU; GPUs by BDF."""
    ordered = sorted(gpus, key=lambda gpu: gpu.bdf)
    switches = tuple(gpu for gpu in ordered if gpu.is_switch)
    found = []
    of_kind = sorted((gpu for gpu in ordered if not gpu.is_switch), key=_kind)
    for (is_hgx, architecture, _), members in groupby(of_kind, key=_kind):
        hopper = is_hgx and architecture == HOPPER
        found.append(
            GpuBoard(
                gpus=tuple(members),
                switches=switches if hopper else (),
                is_hgx=is_hgx,
                architecture=architecture or None,
            )
        )
    return tuple(found)


def _kind(gpu: Gpu) -> tuple[bool, str, int]:
    """By the device id, which PCI always shows; NVML's word for the architecture may be absent."""
    model = GPU_MODELS.get(gpu.device or 0)
    if model is None:
        return False, "", gpu.device or 0
    return model.form is Form.HGX, model.architecture, gpu.device or 0
