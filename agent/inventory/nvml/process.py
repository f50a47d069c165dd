"""The agent's end of one NVML process: started, asked, killed, and its end waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence
from typing import Self

from agent.errors import AgentError
from agent.host.commands import tool_environment
from agent.inventory.nvml.frames import (
    HEAD_BYTES,
    Answer,
    FrameError,
    Happened,
    Request,
    length_of,
    pack,
    told_of,
)
from agent.inventory.nvml.values import NvmlEvent

CHILD = (sys.executable, "-m", "agent.inventory.nvml.child")
_KILLED_WITHIN_S = 5.0


class NvmlEndedError(AgentError):
    """The process ended, or wrote what is no frame. The text says how."""

    @property
    def code(self) -> str:
        return "nvml_crashed"


class NvmlStuckError(AgentError):
    """It was killed and does not end: the kernel keeps it in a call of the driver."""

    @property
    def code(self) -> str:
        return "nvml_stuck"


class NvmlProcess:
    """One process. Whoever asks it takes turns; events come in between."""

    def __init__(
        self, process: asyncio.subprocess.Process, on_event: Callable[[NvmlEvent], None]
    ) -> None:
        self._process = process
        self._on_event = on_event
        self._waiter: asyncio.Future[Answer] | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, argv: Sequence[str], on_event: Callable[[NvmlEvent], None]) -> Self:
        """Raises NvmlEndedError if it cannot be started."""
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=tool_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise NvmlEndedError("the NVML process cannot be started") from error
        return cls(process, on_event)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, request: Request, timeout_s: float) -> Answer:
        """One question. Raises TimeoutError, after which it must be killed, or NvmlEndedError."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self._reader.done():
            raise NvmlEndedError(self._how())
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(ConnectionError):  # its end is told by the reader
            stdin.write(pack(request))
        async with asyncio.timeout(timeout_s):
            return await self._waiter

    async def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            while True:
                head = await stdout.readexactly(HEAD_BYTES)
                frame = told_of(await stdout.readexactly(length_of(head)))
                if isinstance(frame, Happened):
                    self._on_event(frame.event)
                elif self._waiter is not None and not self._waiter.done():
                    self._waiter.set_result(frame)
        except (asyncio.IncompleteReadError, ConnectionError, FrameError):
            self.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILLED_WITHIN_S):
                    await self._process.wait()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(NvmlEndedError(self._how()))

    def _how(self) -> str:
        status = self._process.returncode
        if status is None:
            return "the NVML process wrote what it should not"
        if status < 0:
            return f"the NVML process was killed by {signal.Signals(-status).name}"
        return f"the NVML process ended with status {status}"

    def kill(self) -> None:
        """At once. Nothing happens if it ended."""
        # Not by asyncio: its kill would wait for an ended one behind its watcher's back, which
        # then does not know how it ended.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    async def close(self) -> None:
        """Kill it; when this returns it has ended, and every handle of the driver with it.

        Raises NvmlStuckError if it does not end.
        """
        self.kill()
        try:
            async with asyncio.timeout(_KILLED_WITHIN_S):
                await self._process.wait()
        except TimeoutError:
            detail = f"the NVML process {self.pid} was killed and does not end"
            raise NvmlStuckError(detail) from None
        await self._reader
        if self._process.stdin is not None:
            self._process.stdin.close()
