"""The console of a VM: harvested from QEMU's ring into a bounded log, byte for byte.

The guest writes into a ring inside QEMU that overwrites its oldest bytes, so nothing on the host
can stall it; what was printed faster than it was harvested is lost, oldest first.
Invariant: the log of one enclave never takes more than its limit on disk, at no moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.errors import AgentError
from agent.host.threads import finish_in_thread
from agent.model.clock import until_beat

log = logging.getLogger(__name__)

LOG_BYTES = 8 << 20
CHUNK_BYTES = 128 << 10
BUSY_S = 0.1
IDLE_S = 8.0  # together with the other enclaves' then; who reads the log has it drained first

# Reads and consumes at most so many bytes of the ring; fewer, down to none, when it holds fewer.
ReadRing = Callable[[int], Awaitable[bytes]]


class ConsoleLog:
    """One enclave's log: two segments, of which the older is dropped whole."""

    def __init__(self, directory: Path, limit_bytes: int = LOG_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = limit_bytes // 2
        self._new = directory / "console.log"
        self._old = directory / "console.log.1"

    def append(self, data: bytes) -> None:
        """Add what was harvested. Raises OSError, having written a part of it or nothing."""
        data = data[-self._segment_bytes :]
        if not data:
            return
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _size(self._new) + len(data) > self._segment_bytes:
            self._new.replace(self._old)
        with self._new.open("ab", buffering=0) as file:
            file.write(data)

    def tail(self, max_bytes: int) -> bytes:
        """The newest bytes; empty if there never was a console."""
        newest = _tail(self._new, max_bytes)
        return _tail(self._old, max_bytes - len(newest)) + newest


class Harvester:
    """Moves one VM's ring into its log: soon while the guest prints, rarely while it is silent."""

    def __init__(self, console: ConsoleLog, read: ReadRing, ring_bytes: int) -> None:
        self._console = console
        self._read = read
        self._ring_bytes = ring_bytes
        self._one_reader = asyncio.Lock()  # two readers would mix up the order of the bytes
        self._disk_failed = False

    async def run(self, each_time: Callable[[], None]) -> None:
        """Harvest until cancelled. A monitor that does not answer, or a full disk, only delays."""
        pause_s = BUSY_S
        while True:
            try:
                harvested = await self.drain()
            except AgentError:
                harvested = 0  # the monitor says itself what ails it
            each_time()
            pause_s = BUSY_S if harvested else min(pause_s * 2, IDLE_S)
            if pause_s == IDLE_S:
                await asyncio.sleep(until_beat(IDLE_S, asyncio.get_running_loop().time()))
            else:
                await asyncio.sleep(pause_s)

    async def drain(self) -> int:
        """Harvest what the ring holds now; returns the bytes.

        A guest that goes on printing cannot hold it up: it ends after one ring's worth. Raises
        what reading raises; all that was read before is in the log.
        """
        harvested = 0
        async with self._one_reader:
            while harvested < self._ring_bytes:
                data = await self._read(CHUNK_BYTES)
                harvested += len(data)
                if data:
                    await self._append(data)
                if len(data) < CHUNK_BYTES:
                    break
        return harvested

    async def _append(self, data: bytes) -> None:
        try:
            await finish_in_thread(self._console.append, data)
        except OSError as error:
            if not self._disk_failed:
                log.warning("console log cannot be written", extra={"error": str(error)})
            self._disk_failed = True
        else:
            self._disk_failed = False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tail(path: Path, max_bytes: int) -> bytes:
    if max_bytes <= 0:
        return b""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            return file.read(max_bytes)
    except FileNotFoundError:
        return b""
