"""The confidential-compute mode of a device, through the operator's tool (nvidia_gpu_tools.py).

The tool opens the device's BAR and resets it, and has no guard of its own: it is called for one
full BDF at a time, on a device that was proven to be nobody's. What it prints is a line `… CC mode
is on` and, for what a reset will make of it, lines `  enable = 1`. A GPU is in `ppcie` if that
mode is on, whatever its CC mode; a switch has no other. Each kind of mode is asked for by itself:
the tool ends at the first that the device or its firmware does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agent.host.commands import CommandError, RunCommand, run_command
from agent.inventory.preparation.errors import (
    ModeError,
    ModeNotAppliedError,
    ModeUnsupportedError,
    ToolMissingError,
)
from agent.model.gpu import CcMode, CcModes
from agent.model.ids import Bdf

_ACTIVE = re.compile(r"\b(CC|PPCIe) mode is ([\w-]+)")
_SETTINGS = re.compile(r"\b(CC|PPCIe) settings:")
_KNOB = re.compile(r"(?:^|\s)(enable|enable-devtools) = (\d+|True|False)\b")
_NOTHING = frozenset({"0", "False"})
# As of its cli/per_gpu.py and cli/per_gpu_nvswitch.py.
_UNSUPPORTED = re.compile(
    r"(?:Querying|Configuring) (?:CC|PPCIe)\b.*not supported on|does not support (?:CC|PPCIe)\b"
)
_NOT_APPLIED = re.compile(r"failed to switch to (?:CC|PPCIe) mode")
_NO_TOOL = (
    "install NVIDIA's gpu-admin-tools of a version that knows this GPU, or set host.gpu_tools"
)
_NO_MODE = "give it a firmware that has the mode, or use it where guests are not confidential"


class ToolReport(NamedTuple):
    """What the tool says of a device: its modes, in its own words, and the kinds it has not."""

    modes: CcModes
    told: str
    unsupported: tuple[str, ...] = ()

    @property
    def settled(self) -> CcMode | None:
        """The mode in force, if it is pending too."""
        return self.modes.active if self.modes.active == self.modes.pending else None


class ModeTool:
    """One call at a time for the whole host."""

    def __init__(
        self,
        program: str,
        *,
        timeout_s: float = 120.0,
        run: RunCommand = run_command,
        find: Callable[[str], str | None] = shutil.which,
    ) -> None:
        """`find`: where the program is; None: nowhere."""
        self._program = program
        self._find = find
        self._timeout_s = timeout_s
        self._run = run
        self._turn = asyncio.Lock()

    def prove_there(self, bdf: Bdf) -> None:
        """Before a device is touched that is not done without it. Raises ToolMissingError."""
        if self._find(self._program) is None:
            detail = f"{self._program} is not there, which reads and sets modes"
            raise ToolMissingError(bdf, detail, _NO_TOOL)

    async def query(self, bdf: Bdf, *, kinds: Sequence[str]) -> ToolReport:
        """The modes in force and pending. `kinds`: which the device has, `cc`, `ppcie` or both.

        A kind that it turns out not to have is off for ever. Raises ModeError.
        """
        texts, unsupported = [], []
        for kind in kinds:
            try:
                texts.append(
                    await self._call(bdf, f"--query-{kind}-mode", f"--query-{kind}-settings")
                )
            except ModeUnsupportedError:
                unsupported.append(kind)
        if not texts:
            off = CcModes(active=CcMode.OFF, pending=CcMode.OFF)
            return ToolReport(off, "it knows no such mode", tuple(unsupported))
        text = "\n".join(texts)
        modes = parse_modes(bdf, text)
        return ToolReport(modes, _words(text, modes), tuple(unsupported))

    async def set(self, bdf: Bdf, mode: CcMode, *, kinds: Sequence[str]) -> None:
        """Bring it there and reset it. What was on before is switched off first."""
        for kind in kinds:
            wanted = _value(kind, mode)
            if wanted == "off":
                with contextlib.suppress(ModeUnsupportedError):  # then it is off already
                    await self._set(bdf, kind, wanted)
        for kind in kinds:
            wanted = _value(kind, mode)
            if wanted != "off":
                await self._set(bdf, kind, wanted)

    async def _set(self, bdf: Bdf, kind: str, value: str) -> None:
        reset = f"--reset-after-{kind}-mode-switch"
        await self._call(bdf, f"--set-{kind}-mode", value, reset)

    async def _call(self, bdf: Bdf, *options: str) -> str:
        argv = [self._program, "--devices", bdf, *options]
        async with self._turn:
            try:
                done = await self._run(argv, timeout_s=self._timeout_s)
            except CommandError as error:
                raise ModeError(bdf, f"{self._program} did not do it", _NO_TOOL) from error
        text = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
        if done.status != 0:
            raise _refusal(bdf, f"{self._program} {' '.join(options)}", text, done.status)
        return text


def _refusal(bdf: Bdf, call: str, text: str, status: int) -> ModeError:
    for form, kind in ((_UNSUPPORTED, ModeUnsupportedError), (_NOT_APPLIED, ModeNotAppliedError)):
        line = next((one for one in text.splitlines() if form.search(one)), None)
        if line is not None:
            mend = _NO_MODE if kind is ModeUnsupportedError else None
            return kind(bdf, f"{call}: {line.strip()}", mend)
    last = text.strip().splitlines()[-1:] or [f"exit status {status}"]
    return ModeError(bdf, f"{call}: {last[0].strip()}", _NO_TOOL)


class DeviceModes:
    """What a device's mode is, brought there and proven. `kinds_of`: which kinds a device has."""

    def __init__(self, tool: ModeTool, kinds_of: Callable[[Bdf], Sequence[str]]) -> None:
        self._tool = tool
        self._kinds_of = kinds_of

    def prove_there(self, bdf: Bdf) -> None:
        """That the tool is there. Raises ToolMissingError."""
        self._tool.prove_there(bdf)

    def own(self, bdf: Bdf, mode: CcMode) -> CcMode:
        """What the board's mode is to this device: a switch knows `ppcie` only."""
        knows = "cc" in self._kinds_of(bdf) or mode is CcMode.PPCIE
        return mode if knows else CcMode.OFF

    def resets(self, bdf: Bdf) -> int:
        """How often a change of its mode resets it."""
        return len(self._kinds_of(bdf))

    async def report(self, bdf: Bdf) -> ToolReport:
        """What the tool says of it now. Raises ModeError."""
        return await self._tool.query(bdf, kinds=self._kinds_of(bdf))

    async def bring_to(self, bdf: Bdf, mode: CcMode) -> None:
        """Set it and reset the device, whatever it is in. Raises ModeError."""
        try:
            await self._tool.set(bdf, mode, kinds=self._kinds_of(bdf))
        except ModeError as error:
            error.mode = self.own(bdf, mode)
            raise

    async def proven(self, bdf: Bdf, mode: CcMode) -> ToolReport:
        """That it is there, active and pending. Raises ModeError."""
        report, wanted = await self.report(bdf), self.own(bdf, mode)
        if report.settled is not wanted:
            raise ModeNotAppliedError(
                bdf, f"was set to {wanted} and reset, and says: {report.told}", mode=wanted
            )
        return report


def _value(kind: str, mode: CcMode) -> str:
    """What one kind of mode is set to, for the device to be in `mode`."""
    if kind == "ppcie":
        return "on" if mode is CcMode.PPCIE else "off"
    return "off" if mode is CcMode.PPCIE else str(mode)


def parse_modes(bdf: Bdf, text: str) -> CcModes:
    """From what the tool printed. Raises ModeError if it does not say the mode in force."""
    active: dict[str, str] = {}
    knobs: dict[str, dict[str, bool]] = {}
    section = ""
    for line in text.splitlines():
        if heading := _SETTINGS.search(line):
            section = heading[1]
        elif told := _ACTIVE.search(line):
            active[told[1]] = told[2]
            section = ""
        elif section and (knob := _KNOB.search(line)):
            knobs.setdefault(section, {})[knob[1]] = knob[2] not in _NOTHING
    if not active:
        raise ModeError(bdf, "the GPU tool does not say its mode", _NO_TOOL)
    pending = {kind: _pending(told) for kind, told in knobs.items()}
    return CcModes(active=_mode(active), pending=_mode(pending) if pending else None)


def _words(text: str, modes: CcModes) -> str:
    """Of the modes in force, as the tool names them, and of what a reset makes of them."""
    said = ", ".join(f"{kind} mode {word}" for kind, word in _ACTIVE.findall(text))
    if modes.active == modes.pending:
        return said
    return f"{said}; after a reset {modes.pending or 'not known'}"


def _pending(knobs: dict[str, bool]) -> str:
    if knobs.get("enable-devtools"):
        return "devtools"
    return "on" if knobs.get("enable") else "off"


def _mode(told: dict[str, str]) -> CcMode | None:
    if told.get("PPCIe") == "on":
        return CcMode.PPCIE
    try:
        return CcMode(told.get("CC", "off"))
    except ValueError:
        return None
