"""Runs the machine's short-lived tools (`ip`, `bridge`) to their end, never through a shell.

Invariant: when `run_command` returns or raises, the tool has ended and was waited for (but for one
that was killed and that the kernel keeps in a call), and our ends of its pipes are closed. What a
tool reads on stdin is in no error; its arguments may be, so no secret belongs there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from agent.errors import AgentError

_MAX_OUTPUT_BYTES = 16 << 20
_KILLED_WITHIN_S = 2.0
_STDERR_BYTES = 64 << 10
# What an init system said to us is not for the programs that we start.
_OURS_ALONE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


class CommandError(AgentError):
    """A tool is missing, may not be run, or was given up. Not: it ended with a status."""

    def __init__(self, argv: Sequence[str], reason: str) -> None:
        super().__init__(f"{argv[0]} {reason}")
        self.argv = tuple(argv)

    @property
    def code(self) -> str:
        return "command_failed"


class CommandTimeoutError(CommandError):
    """It was given up because its time was up."""


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """What a tool left. A negative status is the signal that ended it."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """The first line that it wrote about what is wrong."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        return lines[0] if lines else f"exit status {self.status}"


class RunCommand(Protocol):
    """Runs a tool to its end. Raises CommandError."""

    async def __call__(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand: ...


async def run_command(
    argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
) -> CompletedCommand:
    """Run one tool in the C locale, in a session of its own, until it closed its output and ended.

    If it is given up (time, cancellation, more than 16 MiB printed), it and its process group are
    killed and it is waited for. One that ended but left another holding its output is given up
    too, and the other let go: the pid of the group's leader may be somebody else's by then.
    """
    loop = asyncio.get_running_loop()
    try:
        started, protocol = await loop.subprocess_exec(
            lambda: _Output(loop),
            *argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=tool_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(argv, f"cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_s):
            _feed(started, stdin)
            await protocol.closed
    except TimeoutError as error:
        raise CommandTimeoutError(argv, f"did not end within {timeout_s:g} s") from error
    finally:
        await _end(started, protocol)
    if protocol.overflowed:
        raise CommandError(argv, f"printed more than {_MAX_OUTPUT_BYTES} bytes")
    status = cast("int", started.get_returncode())
    return CompletedCommand(status, bytes(protocol.stdout), bytes(protocol.stderr))


def tool_environment() -> dict[str, str]:
    """Ours, without what an init system said to us alone, in the C locale."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS_ALONE}
    return {**kept, "LC_ALL": "C"}


def _feed(started: asyncio.SubprocessTransport, data: bytes) -> None:
    """A tool need not read all of it; whether it was content, its status says."""
    pipe = cast("asyncio.WriteTransport", started.get_pipe_transport(0))
    if pipe.is_closing():
        return
    if data:
        pipe.write(data)
    pipe.close()


class _Output(asyncio.SubprocessProtocol):
    """Keeps what a tool prints, bounded. `closed` is done when it ended and closed its output."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.overflowed = False
        self.exited = loop.create_future()
        self.closed = loop.create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr += data[: _STDERR_BYTES - len(self.stderr)]
        elif len(self.stdout) + len(data) <= _MAX_OUTPUT_BYTES:
            self.stdout += data
        else:
            self.overflowed = True
            _finish(self.closed)

    def process_exited(self) -> None:
        _finish(self.exited)

    def connection_lost(self, exc: Exception | None) -> None:
        _finish(self.closed)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _end(started: asyncio.SubprocessTransport, protocol: _Output) -> None:
    if started.get_returncode() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.get_pid(), signal.SIGKILL)
        await asyncio.wait((protocol.exited,), timeout=_KILLED_WITHIN_S)
    started.close()
