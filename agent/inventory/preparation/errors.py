"""What can go wrong between a GPU that was used and one that may be handed out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent.errors import AgentError
from agent.model.ids import Bdf


class Holder(NamedTuple):
    """A process that has a device open, and through which file."""

    pid: int
    program: str
    path: Path

    def __str__(self) -> str:
        return f"{self.program} (pid {self.pid}, {self.path})"


class PreparationError(AgentError):
    """A device could not be made ready. `bdf` is the device, or the first of several."""

    def __init__(self, bdf: Bdf, detail: str) -> None:
        super().__init__(f"{bdf}: {detail}")
        self.bdf = bdf

    @property
    def code(self) -> str:
        return "gpu_not_prepared"


class GpuHeldError(PreparationError):
    """Processes have it open: to unbind it would wait for them, to reset it would break them."""

    def __init__(self, bdf: Bdf, holders: Sequence[Holder]) -> None:
        super().__init__(bdf, f"is held by {', '.join(map(str, holders))}; end them first")
        self.holders = tuple(holders)

    @property
    def code(self) -> str:
        return "gpu_held"


class GpuOwnedError(PreparationError):
    """It is somebody else's by the store, or its board is in use where all of it is needed."""

    @property
    def code(self) -> str:
        return "gpu_owned"


class GpuQuarantinedError(PreparationError):
    """It is in quarantine, and nothing is started on it until a person lifts that."""

    @property
    def code(self) -> str:
        return "gpu_quarantined"


class BindingError(PreparationError):
    """A driver was not given the device, or does not let it go."""

    @property
    def code(self) -> str:
        return "gpu_not_bound"


class StuckError(BindingError):
    """The kernel does not return from binding or unbinding it: a case for quarantine."""

    @property
    def code(self) -> str:
        return "gpu_stuck"


class ModeError(PreparationError):
    """The operator's tool did not bring it to the mode, or cannot be run or understood."""

    @property
    def code(self) -> str:
        return "gpu_mode_not_set"


class UnqualifiedError(PreparationError):
    """It does not come back sound from its reset within the time: a case for quarantine."""

    @property
    def code(self) -> str:
        return "gpu_not_qualified"
