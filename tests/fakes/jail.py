"""Cages with prisoners in them (`prisoner.py`), and how a cage answers what they attempt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agent.enclaves.cage import Cage, uid_of
from agent.enclaves.supervisor import StartRequest, Supervisor
from agent.host.process import Process
from tests.fakes import prisoner

PYTHON = str(Path("/usr/bin/python3").resolve())
ESCAPES = frozenset(prisoner.attempts(1, "/x", 1))
_NOT_THERE = frozenset({"ENOENT", "ENOTDIR", "ESRCH"})
_REFUSED = frozenset({"EPERM", "EACCES", "EROFS", "EAFNOSUPPORT"})
# Of the room: names that lead into /usr, what the loader reads, a directory of the VM's own.
_PLACES = frozenset(
    "bin dev etc home lib lib32 lib64 libx32 proc root run sbin srv sys tmp usr var".split()  # noqa: SIM905
)
_NODES = frozenset({"full", "null", "random", "urandom", "zero"})
# Those that systemd makes in every unit's own /dev; behind none of them is a device of the host.
_OF_UNITS = frozenset(
    "block char console core fd hugepages log mqueue ptmx pts shm stderr stdin stdout tty".split()  # noqa: SIM905
)


class Jail:
    """Cages of one supervisor. Each prisoner has a place: 2, 3, …"""

    def __init__(self, home: Path, supervisor: Supervisor) -> None:
        self.home = home
        self.supervisor = supervisor
        self.names: list[str] = []
        self._held = ExitStack()

    async def start(
        self, what: str, place: int, other: Process | None = None, **changes: Any
    ) -> Process:
        """Executed; what it tells comes after."""
        name = _name(place)
        home = self.home / name
        (home / "vm").mkdir(parents=True)
        (home / "root").mkdir()
        (home / "root").chmod(0o755)
        values: dict[str, Any] = {"memory_max_mib": 256, "tasks_max": 40}
        uid = uid_of(f"10.215.0.{place}")
        cage = Cage(uid=uid, trees=(Path("/usr"),), **(values | changes))
        words = (what, str(other.identity.pid if other else 1), str(self._first_qmp))
        with ExitStack() as passed:
            script = os.open(prisoner.__file__, os.O_RDONLY)
            passed.callback(os.close, script)
            secret = os.memfd_create("secret")
            passed.callback(os.close, secret)
            request = StartRequest(
                name=name,
                argv=[
                    *(PYTHON, "-I", "-S", f"/proc/self/fd/{script}", *words),
                    str(_owner(self._first_qmp.parent)),
                ],
                pass_fds=(script, secret),
                output=home / "output",
                writable=(home / "vm",),
                cage=cage,
                root=home / "root",
            )
            self.names.append(name)
            process = Process.open(await self.supervisor.start(request))
        assert process is not None
        self._held.callback(process.close)
        self._held.callback(process.kill)
        return process

    @property
    def _first_qmp(self) -> Path:
        return self.home / _name(2) / "vm/qmp"

    @contextlib.contextmanager
    def qmp_of_the_first(self) -> Iterator[None]:
        """Somebody listens there, as QEMU does, and takes everybody."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as qmp:
            qmp.bind(str(self._first_qmp))
            self._first_qmp.chmod(0o777)
            qmp.listen()
            yield

    async def told(self, place: int, lines: int = 1) -> list[Any]:
        """The lines that it has printed, as soon as there are so many."""
        output = self.home / _name(place) / "output"
        async with asyncio.timeout(60):
            while len(said := output.read_text().splitlines(keepends=True)) < lines:
                await asyncio.sleep(0.01)
        return [json.loads(line) for line in said]

    async def leave(self) -> None:
        """Nobody is left in it."""
        self._held.close()
        for name in self.names:
            async with asyncio.timeout(30):
                while any(Path("/sys/fs/cgroup").glob(f"*/enclave-agent/{name}")):
                    self.supervisor.put_away(name)
                    await asyncio.sleep(0.01)


def _name(place: int) -> str:
    return f"enclave-jailed{place:02}"


def _owner(path: Path) -> int:
    return path.stat().st_uid if path.exists() else 0


def not_held(outcomes: Mapping[str, str]) -> dict[str, str]:
    """What was not refused as it should be: a system call by an error, a file by its absence."""
    return {name: outcome for name, outcome in outcomes.items() if not _held(name, outcome)}


def _held(name: str, outcome: str) -> bool:
    if name in prisoner.NEWER:
        return outcome == "ENOSYS"
    if name in prisoner.SYSCALLS:
        return outcome == "EPERM"
    return outcome in _NOT_THERE | _REFUSED


def wrong_in(state: Mapping[str, Any]) -> list[str]:
    """What a prisoner has and should not have."""
    wrong = [] if state["uid"] >= 60000 else ["its user"]
    wrong += [name for name, bits in state["capabilities"].items() if int(bits, 16)]
    wrong += ["it can be looked into"] if state["dumpable"] else []
    wrong += [] if state["no_new_privileges"] == "1" else ["privileges"]
    wrong += [] if int(state["core_filter"], 16) == 0 else ["a core"]
    wrong += [f"/{name}" for name in state["root"] if name not in _PLACES]
    nodes = _NODES | _OF_UNITS
    return wrong + [f"/dev/{name}" for name in state["nodes"] if name not in nodes]
