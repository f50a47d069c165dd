"""Which GPUs and switches sit on one board. Pure.

All HGX GPUs of one kind on a host are one baseboard. The NVSwitches that PCI shows are an Ampere's
or a Hopper baseboard's: Blackwell's show none of that class. A part that nobody knows, beside
NVSwitches, belongs to a board, whose mode is nothing to be changed card by card. Other cards in
slots share only their kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import msgspec

from agent.model.gpu import Gpu
from agent.model.gpu_models import AMPERE, HOPPER, Confidential, Form, GpuPart, part_of

# NVSwitches beside eight GPUs of a baseboard that has any.
_SWITCHES_OF_EIGHT = {AMPERE: 6, HOPPER: 4}
_EIGHT = 8


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

    @property
    def part(self) -> GpuPart:
        """What its GPUs are; they are all of one kind."""
        return part_of(self.gpus[0].device)

    @property
    def never_confidential(self) -> bool:
        """Whether no guest on it can be confidential, whatever mode anybody sets."""
        return self.part.confidential is Confidential.NEVER

    @property
    def incomplete(self) -> str | None:
        """What is missing of it, as a sentence; None if it is whole. Cards miss nothing.

        Boards of 2 and 4 have no NVSwitches, those of 8 may have; a host may have several.
        """
        gpus, switches = len(self.gpus), len(self.switches)
        if not self.is_hgx:
            return None
        if not switches:
            whole = gpus == 2 or gpus % 4 == 0
            return None if whole else "a whole board has 2, 4 or 8 GPUs"
        if gpus % _EIGHT:
            return f"a whole board has {_EIGHT} GPUs beside its NVSwitches"
        each = _SWITCHES_OF_EIGHT.get(self.architecture or "")
        if each is not None and switches * _EIGHT < each * gpus:
            return f"a whole board has {each} NVSwitches beside {_EIGHT} GPUs"
        return None


def gpu_boards(gpus: Iterable[Gpu]) -> tuple[GpuBoard, ...]:
    """By kind of board and GPU; GPUs by BDF."""
    ordered = sorted(gpus, key=lambda gpu: gpu.bdf)
    switches = tuple(gpu for gpu in ordered if gpu.is_switch)

    def kind(gpu: Gpu) -> tuple[bool, str, int]:
        return _kind(gpu, switches)

    of_kind = sorted((gpu for gpu in ordered if not gpu.is_switch), key=kind)
    return tuple(
        GpuBoard(
            gpus=tuple(members),
            switches=_beside(switches, architecture) if is_hgx else (),
            is_hgx=is_hgx,
            architecture=architecture or None,
        )
        for (is_hgx, architecture, _), members in groupby(of_kind, key=kind)
    )


def is_on_board(device: int | None, *, beside_switches: bool) -> bool:
    """Whether a GPU of that id belongs to a baseboard; one that nobody knows does, beside one's
    NVSwitches.
    """
    form = part_of(device).form
    return form is Form.HGX or (form is None and beside_switches)


def _kind(gpu: Gpu, switches: Sequence[Gpu]) -> tuple[bool, str, int]:
    """By the device id, which PCI always shows; NVML's word for the architecture may be absent."""
    is_hgx = is_on_board(gpu.device, beside_switches=bool(switches))
    architecture = part_of(gpu.device).architecture
    if architecture is None and is_hgx:
        told = (part_of(switch.device).architecture for switch in switches)
        architecture = next((one for one in told if one is not None), None)
    return is_hgx, architecture or "", gpu.device or 0


def _beside(switches: Sequence[Gpu], architecture: str) -> tuple[Gpu, ...]:
    """The switches that fit GPUs of that architecture; one that nobody knows may be anybody's."""
    return tuple(
        switch
        for switch in switches
        if part_of(switch.device).architecture in (None, architecture)
    )
