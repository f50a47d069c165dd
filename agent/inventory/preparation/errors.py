"""What can go wrong between a GPU that was used and one that may be handed out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent.errors import AgentError
from agent.model.gpu import CcMode
from agent.model.ids import Bdf


class Holder(NamedTuple):
    """Who uses a device, and through what: a process with a file open, or none (pid 0) where the
    use itself is what shows, such as a virtual function in use.

    `unit`: of systemd, if it is in one. `observes`: it only watches GPUs (a monitor, say), and
    goes on without this one.
    """

    pid: int
    program: str
    path: Path
    unit: str | None = None
    observes: bool = False

    def __str__(self) -> str:
        if not self.pid:
            return f"{self.program} ({self.path})"
        unit = f", {self.unit}" if self.unit else ""
        observer = ", which only observes" if self.observes else ""
        return f"{self.program} (pid {self.pid}{unit}, {self.path}){observer}"

    @property
    def mend(self) -> str:
        """What ends the use."""
        if not self.pid:
            return "end it, or leave the GPU out with gpus.exclude"
        if self.pid == 1:
            return "log its display's sessions out, or leave the GPU out with gpus.exclude"
        if self.unit is None:
            return f"end process {self.pid}"
        if self.unit.endswith(".service") and not self.unit.startswith("user@"):
            stop = f"systemctl stop {self.unit}"
            return f"{stop}, or name it in gpus.stop_units" if self.observes else stop
        return f"end process {self.pid} of {self.unit}"


class PreparationError(AgentError):
    """A device could not be made ready. `bdf` is the device, or the first of several."""

    def __init__(self, bdf: Bdf, detail: str, mend: str | None = None) -> None:
        super().__init__(f"{bdf}: {detail}")
        self.bdf = bdf
        self._mend = mend

    @property
    def code(self) -> str:
        return "gpu_not_prepared"

    @property
    def mend(self) -> str:
        """What a person can do about it."""
        again = f"then: enclave-agent gpus release {self.bdf}"
        return self._mend or f"see the agent's log and the kernel's; {again}"


class GpuHeldError(PreparationError):
    """Somebody uses it: to unbind it would wait for them, to reset it would break them."""

    def __init__(self, bdf: Bdf, holders: Sequence[Holder]) -> None:
        mends = "; ".join(dict.fromkeys(one.mend for one in holders))
        super().__init__(bdf, f"is held by {', '.join(map(str, holders))}; {mends}", mends)
        self.holders = tuple(holders)

    @property
    def code(self) -> str:
        return "gpu_held"


class GpuLeftAloneError(PreparationError):
    """The configuration leaves it out, or it is the host's own display."""

    @property
    def code(self) -> str:
        return "gpu_left_alone"


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


class ResetsSpentError(PreparationError):
    """It was reset so often within the hour that it is left to rest, or until a person says."""

    @property
    def code(self) -> str:
        return "gpu_resets_spent"

    @property
    def mend(self) -> str:
        return (
            "see why it is reset so often: its events, the log; it is reset again after that hour "
            f"or after: enclave-agent gpus release {self.bdf}"
        )


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
    """The operator's tool did not bring it to the mode, or cannot be run or understood.

    `mode`: the one that it was to be in; None if it was only asked for.
    """

    def __init__(
        self, bdf: Bdf, detail: str, mend: str | None = None, mode: CcMode | None = None
    ) -> None:
        super().__init__(bdf, detail, mend)
        self.mode = mode

    @property
    def code(self) -> str:
        return "gpu_mode_not_set"


class ToolMissingError(PreparationError):
    """The operator's tool for modes is not on this host: nothing was touched."""

    @property
    def code(self) -> str:
        return "gpu_tool_missing"


class ModeUnsupportedError(ModeError):
    """The device, or its firmware, has no such mode: no other try will find one."""

    @property
    def code(self) -> str:
        return "gpu_mode_unsupported"


class ModeNotAppliedError(ModeError):
    """It was set and reset, and is in another mode."""

    @property
    def code(self) -> str:
        return "gpu_mode_not_applied"


class UnqualifiedError(PreparationError):
    """It does not come back sound from its reset within the time: a case for quarantine."""

    @property
    def code(self) -> str:
        return "gpu_not_qualified"


class RecoveryError(PreparationError):
    """It cannot be taken off the bus and found again, or did not come back as it was."""

    @property
    def code(self) -> str:
        return "gpu_not_recovered"
