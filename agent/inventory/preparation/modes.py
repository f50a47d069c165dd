"""The confidential-compute mode of a device, through the operator's tool (nvidia_gpu_tools.py).

The tool opens the device's BAR and resets it, and has no guard of its own: it is called for one
full BDF at a time, on a device that was proven to be nobody's. What it prints is a line `… CC mode
is on` and, for what a reset will make of it, lines `  enable = 1`. A GPU is in `ppcie` if that
mode is on, whatever its CC mode; a switch has no other.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from agent.host.commands import CommandError, RunCommand, run_command
from agent.inventory.preparation.errors import ModeError
from agent.model.gpu import CcMode, CcModes
from agent.model.ids import Bdf

_ACTIVE = re.compile(r"\b(CC|PPCIe) mode is (\w+)")
_SETTINGS = re.compile(r"\b(CC|PPCIe) settings:")
_KNOB = re.compile(r"(?:^|\s)(enable|enable-devtools) = (\d+|True|False)\b")
_NOTHING = frozenset({"0", "False"})


class ModeTool:
    """One call at a time for the whole host."""

    def __init__(
        self, program: str, *, timeout_s: float = 120.0, run: RunCommand = run_command
    ) -> None:
        self._program = program
        self._timeout_s = timeout_s
        self._run = run
        self._turn = asyncio.Lock()

    async def query(self, bdf: Bdf, *, kinds: Sequence[str]) -> CcModes:
        """The modes in force and pending. `kinds`: which the device has, `cc`, `ppcie` or both."""
        asked = [f"--query-{kind}-{what}" for kind in kinds for what in ("mode", "settings")]
        return parse_modes(bdf, await self._call(bdf, *asked))

    async def set(self, bdf: Bdf, mode: CcMode, *, kinds: Sequence[str]) -> None:
        """Bring it there and reset it. What was on before is switched off first."""
        for kind in kinds:
            wanted = _value(kind, mode)
            if wanted == "off":
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
                raise ModeError(bdf, f"{self._program} did not do it") from error
        text = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
        if done.status != 0:
            last = text.strip().splitlines()[-1:] or [f"exit status {done.status}"]
            raise ModeError(bdf, f"{self._program} {' '.join(options)}: {last[0].strip()}")
        return text


class DeviceModes:
    """What a device's mode is, brought there and proven. `kinds_of`: which kinds a device has."""

    def __init__(self, tool: ModeTool, kinds_of: Callable[[Bdf], Sequence[str]]) -> None:
        self._tool = tool
        self._kinds_of = kinds_of

    def own(self, bdf: Bdf, mode: CcMode) -> CcMode:
        """What the board's mode is to this device: a switch knows `ppcie` only."""
        knows = "cc" in self._kinds_of(bdf) or mode is CcMode.PPCIE
        return mode if knows else CcMode.OFF

    async def settled(self, bdf: Bdf) -> CcMode | None:
        """The mode in force, if it is pending too. Raises ModeError."""
        modes = await self._tool.query(bdf, kinds=self._kinds_of(bdf))
        return modes.active if modes.active == modes.pending else None

    async def bring_to(self, bdf: Bdf, mode: CcMode) -> None:
        """Set it and reset the device, whatever it is in. Raises ModeError."""
        await self._tool.set(bdf, mode, kinds=self._kinds_of(bdf))

    async def proven(self, bdf: Bdf, mode: CcMode) -> CcMode:
        """That it is there, active and pending. Raises ModeError."""
        found, wanted = await self.settled(bdf), self.own(bdf, mode)
        if found is not wanted:
            raise ModeError(bdf, f"was set to {wanted}, and is in {found or 'two modes'}")
        return wanted


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
        raise ModeError(bdf, "the GPU tool does not say its mode")
    pending = {kind: _pending(told) for kind, told in knobs.items()}
    return CcModes(active=_mode(active), pending=_mode(pending) if pending else None)


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
