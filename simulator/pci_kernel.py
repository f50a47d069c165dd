"""The kernel behind a tree of sysfs: a bind moves the driver's link, a reset takes a while.

`PciKernel.run` answers in the place of `run_command`, write by write, for tests that cut the agent
off between any two. For the real writer `pci_pipes` puts it behind the files that are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.host.commands import CompletedCommand
from simulator.sysfs_tree import SWITCH, SysfsTree

_ONES = b"\xff" * 64


class Died(BaseException):
    """The agent is killed here."""


@dataclass
class PciKernel:
    """`dead`: devices that never come back from a reset. `reset_s`: how long a reset takes.

    `modes`: what the GPU tool would say of each device, active and pending, `cc` and `ppcie`.
    `lacking`: kinds of mode that a device or its firmware does not know. `stubborn`: devices whose
    resets apply no mode. `sick`: devices that come back only from that: `bus` (a reset of their
    bus) or `rescan`. `gone`: devices that no rescan finds. `unknown_to_tool`: devices that the
    tool refuses to work on.
    """

    tree: SysfsTree
    reset_s: float = 0.0
    dead: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)  # vfio-pci does not take these
    modes: dict[str, dict[str, str]] = field(default_factory=dict)
    lacking: dict[str, set[str]] = field(default_factory=dict)
    stubborn: set[str] = field(default_factory=set)
    unknown_to_tool: set[str] = field(default_factory=set)
    sick: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    found: Callable[[str], None] = lambda _: None  # told after a device was found again
    log: list[str] = field(default_factory=list)
    before: Callable[[], None] = lambda: None  # told before each write or call
    moved: Callable[[str], None] = lambda _: None  # told after a device got or lost a driver
    lag_s: float = 0.0  # how long a write takes
    writing: set[str] = field(default_factory=set)  # devices that are being written to
    most_writing: int = 0
    at_work: set[str] = field(default_factory=set)  # devices that the tool is working on
    most_at_work: int = 0
    _off: dict[str, tuple[Path, Path]] = field(default_factory=dict)  # port, what is kept
    _resets: dict[str, threading.Lock] = field(default_factory=dict)

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        del timeout_s
        self.before()
        if argv[0] == "dd":
            path, text = Path(argv[1].removeprefix("of=")), stdin.decode().strip()
            with self._writing(path.parent.name if ":" in path.parent.name else text):
                await asyncio.sleep(self.lag_s)
                status = 0 if self.write(path, text) else 1
            said = CompletedCommand(
                status, b"", b"" if status == 0 else b"dd: error writing: Busy\n"
            )
        else:
            said = await self._tool(list(argv))
        await asyncio.sleep(0)
        return said

    @contextlib.contextmanager
    def _writing(self, bdf: str) -> Iterator[None]:
        assert bdf not in self.writing, f"two write to {bdf} at once"
        self.writing.add(bdf)
        self.most_writing = max(self.most_writing, len(self.writing))
        try:
            yield
        finally:
            self.writing.discard(bdf)

    def write(self, path: Path, text: str) -> bool:
        """What the kernel does; False: it refuses."""
        name, folder = path.name, path.parent
        if name == "driver_override":
            path.write_text(f"{text or '(null)'}\n")
            self.log.append(f"override {folder.name} {text or '-'}")
            return True
        if name == "reset":
            self.log.append(f"reset {folder.name}")
            first = (folder / "reset_method").read_text().split()[:1]
            self._reset(folder, by_bus=first == ["bus"])
            return True
        if name in ("reset_subordinate", "remove", "rescan"):
            self.log.append(f"{name} {folder.name}")
            return self._on_bus(name, folder)
        if name in ("reset_method", "drivers_autoprobe"):
            self.log.append(f"{name} {text}")
            path.write_text(f"{text}\n")
            return True
        self.log.append(f"{name} {text} {folder.name if name != 'drivers_probe' else ''}".strip())
        return self._drive(name, folder.name, text)

    def _drive(self, what: str, driver: str, bdf: str) -> bool:
        link = self.tree.devices / bdf / "driver"
        override = (self.tree.devices / bdf / "driver_override").read_text().strip()
        if what == "unbind":
            if not link.is_symlink() or link.readlink().name != driver:
                return False
            self.tree.bind(bdf, None)
        elif what == "bind":
            if link.is_symlink() or override != driver or bdf in self.refused:
                return False
            self.tree.bind(bdf, driver)
        else:
            self.tree.bind(bdf, self._usual(bdf) if override in ("", "(null)") else override)
        self.moved(bdf)
        return True

    def _usual(self, bdf: str) -> str:
        """Whom the kernel gives a device to by itself."""
        told = int((self.tree.devices / bdf / "class").read_text(), 16)
        return "nvidia-nvswitch" if told == SWITCH else "nvidia"

    def _on_bus(self, what: str, folder: Path) -> bool:
        """What is done to a port, or through it."""
        if what == "reset_subordinate":
            for below in sorted(folder.resolve().glob("*:*:*.*")):
                self._reset(self.tree.devices / below.name, by_bus=True)
        elif what == "remove":
            kept = self.tree.root.parent / f"off-the-bus-{folder.name}"
            self._off[folder.name] = folder.resolve().parent, kept
            self.tree.take_off(folder.name, kept)
            self.moved(folder.name)
        else:
            self._rescan(folder)
        return True

    def _rescan(self, port: Path) -> None:
        """Finds what is behind the port, and gives it away if drivers are probed."""
        probes = (self.tree.root / "bus/pci/drivers_autoprobe").read_text().strip() == "1"
        for bdf, (above, kept) in list(self._off.items()):
            if above != port.resolve() or bdf in self.gone:
                continue
            del self._off[bdf]
            self.tree.put_back(bdf, above, kept)
            if self.sick.get(bdf) == "rescan":
                del self.sick[bdf]
                self._answer(self.tree.devices / bdf)
            self.found(bdf)
            if probes:
                self.tree.bind(bdf, self._usual(bdf))
                self.moved(bdf)

    def _answer(self, folder: Path) -> None:
        """Its configuration space, as its cached registers have it."""
        ids = [int((folder / name).read_text(), 16) for name in ("vendor", "device")]
        head = b"".join(one.to_bytes(2, "little") for one in ids)
        (folder / "config").write_bytes(head + bytes(60))

    def _reset(self, folder: Path, *, by_bus: bool = False) -> None:
        with self._resets.setdefault(folder.name, threading.Lock()):  # as the kernel's of a device
            if folder.name in self.sick and not (by_bus and self.sick[folder.name] == "bus"):
                (folder / "config").write_bytes(_ONES)
                return
            if self.sick.pop(folder.name, None):
                self._answer(folder)
            self._reset_alone(folder)

    def _reset_alone(self, folder: Path) -> None:
        config = (folder / "config").read_bytes()
        if self.reset_s or folder.name in self.dead:
            (folder / "config").write_bytes(_ONES)
            time.sleep(0 if folder.name in self.dead else self.reset_s)
        if folder.name not in self.dead:
            (folder / "config").write_bytes(config)
        told = self.modes.get(folder.name)
        if told and folder.name not in self.stubborn:
            told |= {"cc": told["cc_next"], "ppcie": told["ppcie_next"]}

    def in_mode(self, bdf: str, cc: str = "off", ppcie: str = "off", **later: str) -> None:
        """What is in force on a device; `cc_next` and `ppcie_next` only where they differ."""
        self.modes[bdf] = {"cc": cc, "ppcie": ppcie, "cc_next": cc, "ppcie_next": ppcie} | later

    async def _tool(self, argv: list[str]) -> CompletedCommand:
        bdf, options = argv[argv.index("--devices") + 1], argv[3:]
        self.at_work.add(bdf)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        await asyncio.sleep(0)
        status, text = self.tool(bdf, options)
        self.at_work.discard(bdf)
        return CompletedCommand(status, text.encode(), b"")

    def tool(self, bdf: str, options: list[str]) -> tuple[int, str]:
        """What nvidia_gpu_tools.py does, and its exit status with what it prints: cli/per_gpu.py
        and cli/per_gpu_nvswitch.py of NVIDIA's gpu-admin-tools.
        """
        self.log.append(f"tool {bdf} {' '.join(options)}")
        if bdf in self.unknown_to_tool:
            return 1, f"ERROR    GPU {bdf} is not known to this version\n"
        for kind, name in (("cc", "CC"), ("ppcie", "PPCIe")):
            if kind not in self.lacking.get(bdf, ()):
                continue
            if f"--set-{kind}-mode" in options and kind == "ppcie":
                fault = f"GPU {bdf} does not support PPCIe on current FW. A FW update is required."
                return 1, f"ERROR    {fault}\n"
            if f"--set-{kind}-mode" in options:
                return 1, f"ERROR    Configuring {name} not supported on GPU {bdf}\n"
            if f"--query-{kind}-mode" in options:
                return 1, f"ERROR    Querying {name} mode is not supported on GPU {bdf}\n"
        told, lines = self.modes[bdf], ["NVIDIA GPU Tools version v2025.03.26o"]
        for kind, name in (("cc", "CC"), ("ppcie", "PPCIe")):
            if f"--set-{kind}-mode" in options:
                told[f"{kind}_next"] = options[options.index(f"--set-{kind}-mode") + 1]
            if f"--reset-after-{kind}-mode-switch" in options:
                self._reset(self.tree.devices / bdf)
                if told[kind] != told[f"{kind}_next"]:
                    now = f"current mode is {told[kind]}."
                    want = f"{name} mode {told[f'{kind}_next']}"
                    return 1, f"gpu.error.GpuError: GPU {bdf} failed to switch to {want}, {now}\n"
            if f"--query-{kind}-mode" in options:
                lines.append(f"GPU {bdf} H100 {name} mode is {told[kind]}")
            if f"--query-{kind}-settings" in options:
                lines.append(f"GPU {bdf} H100 {name} settings:")
                lines.append(f"  enable = {int(told[f'{kind}_next'] != 'off')}")
                if kind == "cc":
                    lines.append(f"  enable-devtools = {int(told['cc_next'] == 'devtools')}")
        return 0, "\n".join(lines) + "\n"

    def drivers(self) -> dict[str, str | None]:
        """Who has each device."""
        found = {}
        for path in sorted(self.tree.devices.iterdir()):
            link = path / "driver"
            found[path.name] = link.readlink().name if link.is_symlink() else None
        return found


TOOL = '''#!/usr/bin/env python3
"""Stands in for the operator's tool: does to STATE what the real one does to a device."""
import json, pathlib, sys
state = pathlib.Path({state!r})
log = state.with_suffix(".log")
modes = json.loads(state.read_text())
args = sys.argv[1:]
bdf = args[args.index("--devices") + 1]
with log.open("a") as file:
    file.write(" ".join(args) + "\\n")
if bdf not in modes:
    print("No such device", bdf, file=sys.stderr)
    sys.exit(1)
told = modes[bdf]
for kind, name in (("cc", "CC"), ("ppcie", "PPCIe")):
    if f"--set-{{kind}}-mode" in args:
        told[kind + "_next"] = args[args.index(f"--set-{{kind}}-mode") + 1]
    if f"--reset-after-{{kind}}-mode-switch" in args:
        told["cc"], told["ppcie"] = told["cc_next"], told["ppcie_next"]
    if f"--query-{{kind}}-mode" in args:
        print(f"GPU {{bdf}} H100 {{name}} mode is {{told[kind]}}")
    if f"--query-{{kind}}-settings" in args:
        print(f"GPU {{bdf}} H100 {{name}} settings:")
        print(f"  enable = {{int(told[kind + '_next'] != 'off')}}")
state.write_text(json.dumps(modes))
'''


def install_tool(folder: Path, modes: dict[str, dict[str, str]]) -> Path:
    """An executable `nvidia_gpu_tools.py` in the folder, and the state that it works on."""
    state = folder / "gpu_modes.json"
    state.write_text(json.dumps(modes))
    tool = folder / "nvidia_gpu_tools.py"
    tool.write_text(TOOL.format(state=str(state)))
    tool.chmod(0o755)
    return tool
