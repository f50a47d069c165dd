"""One HAProxy process: its directory, its start, its runtime API, its end.

A process is never reloaded. When the set of listeners changes, a new one is started that takes
the listening sockets over from the old one, connections waiting on them included; the old one
stops listening, keeps what is established, and can be asked about it until that is gone. The
process outlives the agent; its directory tells of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Container, Sequence
from pathlib import Path

from agent.host.commands import CommandError, RunCommand
from agent.host.files import StorageError, make_private_directory, storage_errors
from agent.host.process import Process, find_by_option, identify
from agent.host.threads import finish_in_thread
from agent.traffic.haproxy_config import (
    MEMBERS,
    ROUTES,
    HaproxyFiles,
    limits_line,
    render,
    rigid_binds,
)
from agent.traffic.haproxy_limits import TENANTS, refused_in
from agent.traffic.haproxy_runtime import RuntimeCommands, complaint
from agent.traffic.haproxy_view import HaproxyView, Statistics, parse_statistics, read
from agent.traffic.port import RouteOrder, TrafficError

_START_S = 15.0
_END_S = 10.0
_POLL_S = 0.02
_STATISTICS = "show stat -1 5 -1"  # of listeners (1) and servers (4)


class HaproxyProcess:
    """Speaks of the process of one directory, whether it runs or not."""

    def __init__(self, place: HaproxyFiles, ask: RuntimeCommands) -> None:
        self.place = place
        self._ask = ask
        self._retired = place.directory / "retired"

    @property
    def number(self) -> int:
        return int(self.place.directory.name)

    async def start(
        self,
        binary: str,
        orders: Sequence[RouteOrder],
        run: RunCommand,
        *,
        inherit: HaproxyProcess | None = None,
    ) -> None:
        """Returns when it serves these orders, with the sockets of `inherit`. Raises TrafficError.

        Having failed, there is no process and no directory. If this is cancelled there may be.
        """
        argv = [binary, "-D", "-f", str(self.place.config)]
        if inherit is not None:
            argv += ["-x", str(inherit.place.socket)]
        try:
            await finish_in_thread(_write, self.place, orders, inherit)
            started = await run(argv, timeout_s=_START_S)
            if started.status != 0:
                raise TrafficError(f"HAProxy does not start: {_alert(started.stderr)}")
            await self.pid()
        except (CommandError, StorageError, OSError) as error:
            await self.kill()
            raise TrafficError("HAProxy cannot be started") from error
        except TrafficError:
            await self.kill()
            raise

    async def answers(self) -> bool:
        """Whether it runs; one that is about to start is waited for, one that hangs is killed.

        Without its configuration no process of a dead agent can come to life any more.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_S
        while loop.time() < deadline:
            try:
                await self.pid()
            except (OSError, TrafficError):
                if await finish_in_thread(self._pids):
                    await asyncio.sleep(_POLL_S)
                elif self.place.config.exists():
                    self.place.config.unlink()
                else:
                    break
            else:
                return True
        await self.kill()
        return False

    async def pid(self) -> int:
        """Raises OSError if it does not run."""
        (answer,) = await self._ask(self.place.socket, ["show info"])
        for line in answer.splitlines():
            name, _, value = line.partition(": ")
            if name == "Pid" and value.isdecimal():
                return int(value)
        raise TrafficError("what answers on HAProxy's socket is not HAProxy")

    async def view(self) -> HaproxyView:
        """Raises OSError if it does not run."""
        maps = [f"show map {self.place.directory / name}" for name in (ROUTES, MEMBERS)]
        routes, members, statistics = await self._ask(self.place.socket, [*maps, _STATISTICS])
        return read(routes, members, statistics)

    async def statistics(self) -> Statistics:
        """Raises OSError if it does not run."""
        (answer,) = await self._ask(self.place.socket, [_STATISTICS])
        return parse_statistics(answer)

    async def sessions(self) -> str:
        (answer,) = await self._ask(self.place.socket, ["show sess"])
        return answer

    async def order(self, commands: Sequence[str]) -> None:
        """Carry commands out. Raises TrafficError for the first that was refused, OSError."""
        answers = await self._ask(self.place.socket, commands) if commands else []
        if refused := complaint(commands, answers):
            raise TrafficError(f"HAProxy refused a command: {refused}")

    async def refused(self) -> dict[str, dict[str, int]]:
        """Raises OSError if it does not run."""
        (answer,) = await self._ask(self.place.socket, [f"show table {TENANTS}"])
        return refused_in(answer)

    def keeps_to_its_limits(self) -> bool:
        """Whether it was started with those that are configured now."""
        try:
            configuration = self.place.config.read_text()
        except OSError:
            return False
        return limits_line(self.place.limits) in configuration.splitlines()

    @property
    def is_retired(self) -> bool:
        """Whether it was told to stop listening, and so is in force no more."""
        return self._retired.exists()

    async def retire(self, kept: Container[str]) -> None:
        """Stop listening, for good; established connections stay. Idempotent. Raises OSError.

        The sockets stay open as long as the process, which would hand them over once more: a
        successor that shares them (`kept`) accepts from them, the others are made to refuse.
        """
        self._retired.touch()
        frontends = (await self.statistics()).frontends
        listening = {name: state for name, state in frontends.items() if state != "STOP"}
        gone = [name for name, state in listening.items() if state == "OPEN" and name not in kept]
        await self.order(
            [
                *(f"disable frontend {name}" for name in gone),
                *(f"shutdown frontend {name}" for name in listening),
            ]
        )

    async def end_if_idle(self) -> bool:
        """End one that has stopped listening, once nobody is connected. Returns whether it did."""
        try:
            if (await self.statistics()).clients:
                return False
        except OSError:
            pass
        await self.kill(signal.SIGUSR1)
        return True

    async def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Returns when there is no such process and no directory. Raises TrafficError."""
        for pid in await finish_in_thread(self._pids):
            found = identify(pid)
            process = Process.open(found) if found is not None else None
            if process is None:
                continue
            try:
                process.kill(sig)
                async with asyncio.timeout(_END_S):
                    await process.wait()
            except TimeoutError as error:
                raise TrafficError(f"HAProxy (process {pid}) does not end") from error
            finally:
                process.close()
        await finish_in_thread(shutil.rmtree, self.place.directory, ignore_errors=True)

    def _pids(self) -> list[int]:
        config = str(self.place.config)
        return find_by_option("-f", [config])[config]


def processes_in(directory: Path) -> list[int]:
    """The numbers of the processes that a directory tells of, the newest first."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _write(
    place: HaproxyFiles, orders: Sequence[RouteOrder], inherit: HaproxyProcess | None
) -> None:
    """Not to last: a process that has read them needs them no more.

    But for what its successor reads in its configuration: how its sockets are bound.
    """
    bound: frozenset[str] = frozenset()
    if inherit is not None:
        with contextlib.suppress(FileNotFoundError):
            bound = rigid_binds(inherit.place.config.read_text())
    make_private_directory(place.directory.parent)
    with storage_errors("write", place.directory):
        place.directory.mkdir(mode=0o700)
        for name, text in render(place, orders, bound).items():
            (place.directory / name).write_text(text)


def _alert(stderr: bytes) -> str:
    """The first thing that HAProxy cannot bear."""
    lines = stderr.decode(errors="replace").splitlines()
    alerts = [line.partition(":")[2].strip() for line in lines if line.startswith("[ALERT]")]
    return (alerts or lines or ["it says nothing"])[0]
