"""Which root ports a trust domain's devices sit behind: by the board that they are of. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.enclaves.pci_layout import ROOT_PORTS, RootPorts
from agent.model.gpu import Gpu
from agent.model.gpu_boards import gpu_boards
from agent.model.gpu_models import HOPPER

BLACKWELL = "blackwell"
_BOARD, _SWITCHES = 8, 4


def root_ports_for(devices: Sequence[Gpu]) -> RootPorts | None:
    """The public launcher's, for one GPU, or a whole HGX board as that is given to one guest.

    None: whatever else there is has the layout's own.
    """
    boards = gpu_boards(devices)
    if len(boards) != 1:
        return None
    board = boards[0]
    gpus, switches = len(board.gpus), len(devices) - len(board.gpus)
    if (gpus, switches) == (1, 0):
        return ROOT_PORTS["single"]
    if not board.is_hgx or gpus != _BOARD:
        return None
    if (board.architecture, switches) == (HOPPER, _SWITCHES):
        return ROOT_PORTS["hopper"]
    return ROOT_PORTS["blackwell"] if (board.architecture, switches) == (BLACKWELL, 0) else None


def fullest_root_ports(devices: Sequence[Gpu], gpus: int) -> RootPorts | None:
    """The public launcher's for so many of these GPUs, by the board that leaves the least room."""
    found = []
    for board in gpu_boards(devices):
        if len(board.gpus) < gpus or not gpus:
            continue
        switches = board.switches if gpus == _BOARD else ()
        ports = root_ports_for((*board.gpus[:gpus], *switches))
        if ports is not None:
            found.append(ports)
    return max(found, key=lambda ports: len(ports.slots), default=None)
