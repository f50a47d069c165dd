"""Control groups of our own, where no systemd has the tree: a memory limit and a number of tasks.

Both kinds of the kernel's interface: one tree for all (v2), or one for each controller (v1).
Sources: the kernel's admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/pids.rst.
"""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

from agent.host.process import PROC

CGROUPS = Path("/sys/fs/cgroup")
_OURS = "enclave-agent"


class Cgroups:
    """Groups below one of ours. Calls block for a moment, and raise OSError."""

    def __init__(self, root: Path = CGROUPS) -> None:
        self._root = root
        self._unified = (root / "cgroup.controllers").exists()

    def fault(self) -> str | None:
        """Why there can be none, or None: one is made and removed."""
        trial = f"trial-{os.getpid()}"
        try:
            self.make(trial, memory_max_mib=64, tasks_max=8)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        finally:
            self.remove(trial)
        return None

    def make(self, name: str, *, memory_max_mib: int, tasks_max: int) -> None:
        """An empty group with these limits; swap is none of its memory, where that is counted."""
        memory, pids = self._places(name)
        if self._unified:
            for above in (self._root, self._root / _OURS):
                above.mkdir(exist_ok=True)
                (above / "cgroup.subtree_control").write_text("+memory +pids")
        memory.mkdir(parents=True, exist_ok=True)
        pids.mkdir(parents=True, exist_ok=True)
        limit = str(memory_max_mib << 20)
        (memory / ("memory.max" if self._unified else "memory.limit_in_bytes")).write_text(limit)
        swap = (
            ("memory.swap.max", "0") if self._unified else ("memory.memsw.limit_in_bytes", limit)
        )
        if (memory / swap[0]).exists():
            (memory / swap[0]).write_text(swap[1])
        (pids / "pids.max").write_text(str(tasks_max))

    def add(self, name: str, pid: int) -> None:
        """That process, and what it starts from now on."""
        for place in dict.fromkeys(self._places(name)):
            (place / "cgroup.procs").write_text(str(pid))

    def remove(self, name: str) -> None:
        """Once no process is in it. Idempotent; one that cannot go is left."""
        for place in dict.fromkeys(self._places(name)):
            with contextlib.suppress(OSError):
                place.rmdir()

    def _places(self, name: str) -> tuple[Path, Path]:
        if self._unified:
            return self._root / _OURS / name, self._root / _OURS / name
        return self._root / "memory" / _OURS / name, self._root / "pids" / _OURS / name


class MemoryLimit:
    """Whether the kernel ended a process at the limit of a group of its own. To be closed."""

    def __init__(self, pid: int, name: str, root: Path = CGROUPS) -> None:
        """Before it was waited for. `name`: of its group or unit; of another nothing is known."""
        self._events = _open(_events_of(pid, name, root))

    @property
    def was_hit(self) -> bool:
        """Whether something was killed in it. Read as soon as it ended."""
        return self._kills() > 0

    def close(self) -> None:
        """Idempotent."""
        if self._events is not None:
            self._events.close()

    def _kills(self) -> int:
        if self._events is None or self._events.closed:
            return 0
        try:
            self._events.seek(0)
            words = self._events.read().decode().split()
        except OSError:
            return 0
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def _open(path: Path | None) -> FileIO | None:
    try:
        return path.open("rb", buffering=0) if path is not None else None
    except OSError:
        return None


def _events_of(pid: int, name: str, root: Path) -> Path | None:
    """The file that counts."""
    try:
        lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if path.rpartition("/")[2].removesuffix(".service") != name:
            continue
        if controllers == "" and (root / "cgroup.controllers").exists():
            return root / path.lstrip("/") / "memory.events"
        if "memory" in controllers.split(","):
            return root / "memory" / path.lstrip("/") / "memory.oom_control"
    return None
