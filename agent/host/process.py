"""Processes beyond doubt: named by pid, start time and boot, watched and signalled by pidfd.

Invariant: a `Process` speaks of exactly one process for as long as it is open. The kernel may give
the pid to another one; the pidfd and the start time never follow it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from agent.model.enclave import ProcessIdentity

PROC = Path("/proc")
# Fields of /proc/<pid>/stat; the command's name, before them, is the second (proc(5)).
_FIRST_FIELD = 3
_FLAGS, _START_TIME, _PENDING = (number - _FIRST_FIELD for number in (9, 22, 31))
_PF_EXITING = 0x4  # of the kernel's include/linux/sched.h


def boot_id() -> str:
    """The name of this boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a process, a zombie included; None if there is none of that pid."""
    fields = _stat(PROC / str(pid))
    return _identity(pid, fields) if fields else None


def is_ending(identity: ProcessIdentity) -> bool:
    """Whether this process ended, or is past the point from which the kernel takes it down.

    Its memory and files are released after that point, which takes long where there is much of
    them: until then its pidfd says nothing, and its sockets may be open with nobody behind them.
    """
    fields = _stat(PROC / str(identity.pid))
    if not fields or _identity(identity.pid, fields) != identity:
        return True
    killed = int(fields[_PENDING]) & 1 << (signal.SIGKILL - 1)
    return bool(int(fields[_FLAGS]) & _PF_EXITING or killed)


def start_ticks(place: Path) -> int | None:
    """When the process of this directory (/proc/PID) started, in clock ticks since the boot.

    None if there is none. Pids do not tell which of two is the younger: they begin anew once the
    greatest was given.
    """
    fields = _stat(place)
    return int(fields[_START_TIME]) if fields else None


def _stat(place: Path) -> list[bytes]:
    """What the kernel tells of the process of this directory; empty if there is none."""
    try:
        stat = (place / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name may hold spaces and brackets; the last bracket ends it.
    return stat[stat.rindex(b")") + 2 :].split()


def _identity(pid: int, fields: list[bytes]) -> ProcessIdentity:
    return ProcessIdentity(pid=pid, start_ticks=int(fields[_START_TIME]), boot_id=boot_id())


def argv_of(pid: int) -> list[bytes]:
    """A process's arguments; empty for a zombie, a kernel thread, or none of that pid."""
    try:
        line = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return line.split(b"\0")[:-1]


def find_by_option(option: str, values: Iterable[str]) -> dict[str, list[int]]:
    """Pids by the value that follows exactly this option in their arguments. One walk of /proc."""
    wanted = {value.encode(): value for value in values}
    found: dict[str, list[int]] = {value: [] for value in wanted.values()}
    if not wanted:
        return found
    for pid in _pids():
        argv = argv_of(pid)
        for name, value in itertools.pairwise(argv):
            if name == option.encode() and value in wanted:
                found[wanted[value]].append(pid)
                break
    return found


def _pids() -> Iterator[int]:
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            yield int(entry.name)


class Process:
    """One running or ended process, held by its pidfd. Close it."""

    def __init__(self, identity: ProcessIdentity, pidfd: int) -> None:
        self.identity = identity
        self._pidfd = pidfd

    @classmethod
    def open(cls, identity: ProcessIdentity) -> Self | None:
        """Hold the very process of this identity; None if it is gone (and waited for)."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        if identify(identity.pid) != identity:
            os.close(pidfd)
            return None
        return cls(identity, pidfd)

    @property
    def ended(self) -> bool:
        """Whether it ended. If so, nothing of its memory or its files is held any more."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Signal it; nothing happens if it ended. Raises PermissionError."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, sig)

    async def wait(self) -> None:
        """Wait until it ended, whoever its parent is. One waiter a handle."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)

    def reap(self) -> str | None:
        """If it ended and is our child: how, in words, leaving no zombie. Else None."""
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return f"exit status {result.si_status}"
        return f"killed by {signal.Signals(result.si_status).name}"

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
