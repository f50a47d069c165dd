"""Processes by what is in their arguments: to end them, and to count what they use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


def pids_with(mark: str) -> list[int]:
    """Other processes that have this text in their arguments."""
    found = []
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if os.fsencode(mark) in (_PROC / entry.name / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


async def stop_pids(pids: list[int], patience_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL; returns when they are gone. Named by pidfd, so never another's."""
    held = []
    for pid in pids:
        with contextlib.suppress(OSError):
            held.append((pid, os.pidfd_open(pid)))
    try:
        for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10.0)):
            for _, fd in held:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(fd, number)
            deadline = time.monotonic() + wait_s
            while any(map(_alive, (pid for pid, _ in held))) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
    finally:
        for _, fd in held:
            os.close(fd)


def _alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return False
    return stat[stat.rindex(b")") + 2 :][:1] not in (b"Z", b"X")


@dataclass(frozen=True, slots=True)
class Usage:
    """`cpu_s`: of the process and of the children that it waited for."""

    cpu_s: float
    at: float

    def cores_since(self, earlier: Usage) -> float:
        return (self.cpu_s - earlier.cpu_s) / (self.at - earlier.at)


def usage(pid: int) -> Usage:
    """What a process used up to now."""
    stat = (_PROC / str(pid) / "stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()
    ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), time.monotonic())


def rss_mib(pid: int) -> float:
    """Resident now."""
    return _status_mib(pid, "VmRSS")


def peak_rss_mib(pid: int) -> float:
    """The most that ever was resident."""
    return _status_mib(pid, "VmHWM")


def _status_mib(pid: int, name: str) -> float:
    text = (_PROC / str(pid) / "status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, f"{name} of process {pid}"
    return int(found.group(1)) / 1024
