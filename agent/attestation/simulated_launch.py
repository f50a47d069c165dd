"""What a QEMU process was given to boot, told by the process itself.

The kernel, the initrd and the firmware are read through the process's own open files where its
arguments name descriptors, as the agent's do, and else in its own view of the file system. So a
program that stands between the agent and QEMU and exchanges one of them is seen.
"""

from __future__ import annotations

import re
from pathlib import Path

from agent.errors import AgentError
from agent.host.process import PROC, argv_of
from agent.model.measurement import MeasuredLaunch

_FD = re.compile(r"/(?:proc/self|dev)/fd/(\d{1,9})", re.ASCII)
_CPUS = re.compile(r"(?:cpus=)?([1-9]\d{0,4})", re.ASCII)


class LaunchUnknownError(AgentError):
    """A process does not tell what it booted."""

    def __init__(self, pid: int, reason: str) -> None:
        super().__init__(f"process {pid} cannot be measured: {reason}")

    @property
    def code(self) -> str:
        return "launch_unknown"


def launch_of(pid: int) -> MeasuredLaunch:
    """Read a process's arguments. Raises LaunchUnknownError.

    The paths lead to the process's files for as long as it lives; nothing is opened here.
    """
    argv = [word.decode(errors="surrogateescape") for word in argv_of(pid)]
    return MeasuredLaunch(
        vcpus=_vcpus(pid, argv),
        firmware=_file(pid, _option(pid, argv, "bios")),
        kernel=_file(pid, _option(pid, argv, "kernel")),
        initrd=_file(pid, _option(pid, argv, "initrd")),
        cmdline=_option(pid, argv, "append"),
    )


def _option(pid: int, argv: list[str], name: str) -> str:
    """The value of an option; of the last one, as QEMU takes it, if it is there twice."""
    values = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in (f"-{name}", f"--{name}")]
    if not values:
        raise LaunchUnknownError(pid, f"it has no -{name}")
    return values[-1]


def _vcpus(pid: int, argv: list[str]) -> int:
    match = _CPUS.fullmatch(_option(pid, argv, "smp"))
    if match is None:
        raise LaunchUnknownError(pid, "its -smp is more than a number")
    return int(match[1])


def _file(pid: int, name: str) -> Path:
    process = PROC / str(pid)
    descriptor = _FD.fullmatch(name)
    if descriptor:
        return process / "fd" / descriptor[1]
    if name.startswith("/"):
        return process / "root" / name.lstrip("/")
    return process / "cwd" / name
