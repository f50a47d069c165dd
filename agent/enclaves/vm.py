"""One QEMU process that exists: watched by pidfd, spoken to by QMP, its console harvested.

Invariant: what ended stays ended. `gone` is set once the process holds nothing any more; `ended`
once its guest is known not to go on (QEMU stays, paused unless a crash kernel runs, until `quit`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from agent.enclaves.argv import console_ring
from agent.enclaves.console import ConsoleLog, Harvester
from agent.enclaves.monitor import GuestEnd, Monitor, MonitorError
from agent.enclaves.port import SecureProcessor
from agent.enclaves.rundir import RunDir
from agent.errors import AgentError
from agent.host.cgroups import MemoryLimit
from agent.host.process import Process, argv_of, find_by_option, identify
from agent.host.units import runs_in
from agent.model.enclave import ProcessIdentity
from agent.model.ids import EnclaveId

DRAIN_S = 10.0  # beyond the deadline of a command, so that one that hangs is hung up on
FIND_S = 5.0
FIND_AGAIN_S = 0.02
RING_BYTES = 1 << 20  # a drain ends after so much, however fast the guest prints


class Vm:
    """A VM that runs, or whose process has not been buried yet. `changed` is called on news."""

    def __init__(
        self,
        enclave_id: EnclaveId,
        launch_uuid: str,
        process: Process,
        *,
        run: RunDir,
        console: ConsoleLog,
        changed: Callable[[], None],
        simulated: bool = False,
        debug_console: bool = False,
    ) -> None:
        self.enclave_id = enclave_id
        self.simulated = simulated
        self.launch_uuid = launch_uuid
        self.process = process
        unit = f"enclave-{enclave_id}.service"
        self.unit = unit if runs_in(process.identity.pid, unit) else None
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()
        self.end: GuestEnd | None = None
        self.exit_status: str | None = None
        self._run = run
        self._limit = MemoryLimit(process.identity.pid, f"enclave-{enclave_id}")
        self._ring = console_ring(debug_console=debug_console)
        self._changed = changed
        self.monitor = Monitor(run.qmp_socket, launch_uuid, self._guest_ended, name=enclave_id)
        self._harvester = Harvester(console, self._read_ring, RING_BYTES)
        self._tasks = [asyncio.create_task(self._watch(), name=f"watch {enclave_id}")]
        self.monitor.start()

    @property
    def identity(self) -> ProcessIdentity:
        return self.process.identity

    def start_harvest(self) -> None:
        """Begin to move the console into its log."""
        self._tasks.append(asyncio.create_task(self._keep_house()))

    def start_processor(self, processor: SecureProcessor) -> None:
        """Begin to have its secure processor played."""
        serving = processor.serve(self.enclave_id, self.identity, self._run.psp_socket)
        self._tasks.append(asyncio.create_task(serving, name=f"processor {self.enclave_id}"))

    async def drain_console(self, within_s: float = DRAIN_S) -> None:
        """Bring what the ring holds into the log, if QEMU still answers in time."""
        with contextlib.suppress(AgentError, TimeoutError):
            async with asyncio.timeout(within_s):
                await self._harvester.drain()

    async def wait_up(self, deadline_s: float) -> None:
        """Wait until QMP answers. Raises MonitorError at the deadline or when the process ends."""
        await first(deadline_s, self.gone.wait(), self._up(deadline_s))
        if not self.monitor.connected:
            await self.monitor.wait_up(0)

    async def _up(self, deadline_s: float) -> None:
        with contextlib.suppress(MonitorError):
            await self.monitor.wait_up(deadline_s)

    async def close(self) -> None:
        """Let go of it. A process that still runs runs on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.monitor.close()
        self._limit.close()
        self.process.close()

    async def _watch(self) -> None:
        await self.process.wait()
        self.exit_status = self.process.reap()
        if self._limit.was_hit:
            self.exit_status = "ended by the kernel at its memory limit (docs/host.md, The cage)"
        self.gone.set()
        self._changed()

    def _guest_ended(self, end: GuestEnd) -> None:
        if self.end is None:
            self.end = end
            self.ended.set()
            self._changed()

    async def _keep_house(self) -> None:
        await self._harvester.run(self._run.trim_output)

    async def _read_ring(self, max_bytes: int) -> bytes:
        return await self.monitor.read_ring(self._ring, max_bytes)


async def first(deadline_s: float, *things: Coroutine[Any, Any, Any]) -> bool:
    """Wait for the first of some things; False if the deadline came before any."""
    tasks = [asyncio.create_task(thing) for thing in things]
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
        )
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def find_holder(
    run: RunDir, launch_uuid: str, likely: ProcessIdentity | None
) -> Process | None:
    """The process of this launch that holds the enclave's lock.

    Just after a fork the lock may be held by a process that is not QEMU yet: it is waited for.
    None if the lock became free meanwhile, or if its holder is nobody that we know.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FIND_S
    pids = [likely.pid] if likely else []
    while True:
        for pid in pids:
            process = _verified(run, launch_uuid, pid)
            if process is not None:
                return process
        if not run.is_locked() or loop.time() > deadline:
            return None
        if pids:
            await asyncio.sleep(FIND_AGAIN_S)
        pids = find_by_option("-uuid", [launch_uuid])[launch_uuid]


def _verified(run: RunDir, launch_uuid: str, pid: int) -> Process | None:
    """That process, if it is this launch's beyond doubt."""
    identity = identify(pid)
    process = Process.open(identity) if identity else None
    if process is None:
        return None
    argv = argv_of(pid)
    told = (b"-uuid", launch_uuid.encode()) in itertools.pairwise(argv)
    # Still running now: so it was the same process that was looked at.
    if told and run.is_held_by(pid) is not False and not process.ended:
        return process
    process.close()
    return None
