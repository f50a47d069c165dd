"""The daemon, watched at everything that it makes durable or does to the host; killed -9 on order.

    python -m tests.fakes.crashing_daemon --orders FILE --journal FILE --config FILE run

While the file of orders is there, every point that is passed is written to the journal, a line
each: what is done, and how often it was done under these orders. Orders are a number, another each
time, and then, if it is to die, the point at which: its line in the journal, or `@N` for the Nth
of all. With the word TERM before it, it is asked to end there (SIGTERM); with the word FULL the
disk of its state is full from there on, as long as there are orders, and the file `full` says so.

Nothing is listed by hand. What the interpreter's audit hook tells of (files opened for writing,
renames, removals, directories, processes started, sockets bound) is a point just before it
happens; every call of a port that may change something (see `WATCHED`) is one
before and one after; so is every command to QEMU that changes its VM.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import os
import re
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from agent.config import Config
from agent.daemon import run
from agent.daemon.choices import Choices
from agent.daemon.parts import Assembly, build
from agent.host.clock import RealClock
from agent.model.ids import HostId
from agent.store.port import StoreFullError
from agent.store.sqlite import SqliteStore
from agent.updates.engine.engine import EngineRuntime

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = frozenset(
    {
        *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"),
        *("os.symlink", "os.chmod", "os.chown", "subprocess.Popen", "os.posix_spawn", "os.fork"),
        *("os.kill", "os.killpg", "socket.bind"),
    }
)
_NEEDING_ROOM = frozenset({"os.mkdir", "os.symlink", "os.link"})
# Ports' calls that only look.
LOOKS = frozenset(
    {
        *("read", "observe", "connections", "resolve", "start", "close", "adopt"),
        *("drain_console", "images", "examine", "refresh", "keep", "require_signed", "refused"),
    }
)
# The parts whose calls are points.
WATCHED = ("store", "enclaves", "traffic", "releases", "gpus", "preparation")
_QMP_LOOKS = frozenset({"query-uuid", "query-status", "qmp_capabilities"})
_ID = re.compile(r"(?<![a-z0-9])[a-z2-7]{8}(?![a-z0-9])")
_SCRATCH = re.compile(r"\.[0-9a-f]{16}\.new")
_SECRETS = re.compile(r"^/dev/shm/enclave-agent-\d+-[0-9a-f]{16}")
_NUMBER = re.compile(r"\d+")


class Points:
    """Counts points while there are orders."""

    def __init__(self, orders: Path, journal: Path) -> None:
        self._orders = orders
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.RLock()
        self._seen: Counter[str] = Counter()
        self._given = ""
        self._full = False
        self._inside = False
        self._home = orders.parent

    def pass_(self, what: str) -> None:
        with self._lock:
            if self._inside:
                return
            self._inside = True
            try:
                self._pass(what)
            finally:
                self._inside = False

    def _pass(self, what: str) -> None:
        try:
            orders = self._orders.read_text()
        except FileNotFoundError:
            self._full = False
            return
        if orders != self._given:
            self._given = orders
            self._seen.clear()
            self._full = False
        self._seen[what] += 1
        point = f"{what} #{self._seen[what]}"
        os.write(self._journal, f"{point}\n".encode())
        fatal = orders.partition(" ")[2]
        word = next((word for word in ("TERM ", "FULL ") if fatal.startswith(word)), "")
        if fatal.removeprefix(word) not in (point, f"@{self._seen.total()}"):
            return
        if word == "FULL ":
            self._full = True
            (self._home / "full").touch()
        else:
            os.kill(os.getpid(), signal.SIGTERM if word else signal.SIGKILL)

    @property
    def full(self) -> bool:
        """Whether the disk is."""
        with self._lock:
            return self._full and not self._inside and self._orders.exists()

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: it hears before the thing happens."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & _WRITING:
                self.pass_(f"open {self._named(path)}")
                self._stop_if_full(path)
        elif event in _CHANGES:
            path = arguments[0] if arguments else ""
            told = self._named(path) if isinstance(path, (str, bytes)) else ""
            self.pass_(f"{event} {told}")
            if event in _NEEDING_ROOM:
                self._stop_if_full(path)

    def _stop_if_full(self, path: str | bytes) -> None:
        if os.fsdecode(path).startswith(f"{self._home}/state/") and self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _named(self, path: str | bytes) -> str:
        """The same thing has the same name in every run, and in every place."""
        text = os.fsdecode(path).replace(str(self._home), "").replace(self._home.name, "")
        text = _SECRETS.sub("SECRETS", _SCRATCH.sub(".SCRATCH", _ID.sub("ID", text)))
        return _NUMBER.sub("N", text) if text.startswith("/proc/") else text


class Watched:
    """A part whose changing calls are points."""

    def __init__(self, part: Any, name: str, points: Points) -> None:
        self._part = part
        self._name = name
        self._points = points

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._part, attribute)
        if attribute in LOOKS or not inspect.iscoroutinefunction(value):
            return value

        async def call(*arguments: Any, **named: Any) -> Any:
            self._points.pass_(f"before {self._name}.{attribute}")
            if self._name == "store" and self._points.full:
                raise StoreFullError("no space left on device")
            result = await value(*arguments, **named)
            self._points.pass_(f"after {self._name}.{attribute}")
            return result

        return call


def watch_monitors(points: Points) -> None:
    """The library's, not ours: commands to QEMU are no calls of a port."""
    execute = QMPClient.execute

    async def watched(self: QMPClient, command: str, arguments: Any = None, **more: Any) -> Any:
        if command in _QMP_LOOKS:
            return await execute(self, command, arguments, **more)
        points.pass_(f"before qmp {command}")
        result = await execute(self, command, arguments, **more)
        points.pass_(f"after qmp {command}")
        return result

    QMPClient.execute = watched


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("orders", "journal", "config"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("verb", choices=["run"])
    given = parser.parse_args(arguments)
    points = Points(given.orders, given.journal)

    def join(
        config: Config, choices: Choices, clock: RealClock, store: SqliteStore, host_id: HostId
    ) -> Assembly:
        assembly = build(config, choices, clock, Watched(store, "store", points), host_id)
        parts = assembly.runtime.parts
        watched = {
            name: Watched(getattr(parts, name), name, points)
            for name in WATCHED
            if name != "store"
        }
        facts = assembly.runtime.publisher.snapshot.host
        runtime = EngineRuntime(dataclasses.replace(parts, **watched), facts)
        return Assembly(
            runtime=runtime, fleet=assembly.fleet, releases=assembly.releases, collateral=None
        )

    watch_monitors(points)
    sys.addaudithook(points.hear)
    return run.main(given.config, join)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
