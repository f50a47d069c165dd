"""The one owner of an enclave: a task that alone launches, adopts, watches and stops its VM.

    ABSENT --launch--> STARTING --QMP up--> RUNNING --guest or QEMU ends--> EXITED
      ^                    |                   |                              |
      |                 failure              stop                            stop
      +---- cleaned -------+---- cleaned ---- STOPPING <----------------------+
                                                |  ^
                                   not killable v  | stop again
                                               STUCK

Orders wait in one queue and are done one after the other; what happens to the VM meanwhile is seen
by the same task. Everybody else reads `view`.
Invariants: there is never a second VM, because a launch needs the lock that every process of the
first one holds; ABSENT is said only when the lock was free and everything else was removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.enclaves.actor import Actor
from agent.enclaves.console import ConsoleLog
from agent.enclaves.launcher import EnclaveLockHeldError, Launcher, unit_name
from agent.enclaves.monitor import MonitorError
from agent.enclaves.network import Network, NetworkError
from agent.enclaves.port import (
    EnclaveError,
    LaunchOrder,
    SecureProcessor,
    ServesBooted,
    Teardown,
    VmPhase,
    VmView,
)
from agent.enclaves.publisher import ViewPublisher
from agent.enclaves.rundir import RunDir
from agent.enclaves.shutdown import ask_guest, end_vm
from agent.enclaves.supervisor import Supervisor
from agent.enclaves.vm import Vm, find_holder
from agent.errors import AgentError, describe
from agent.host.files import StorageError
from agent.host.process import Process
from agent.model.enclave import Enclave, ProcessIdentity
from agent.model.ids import EnclaveId
from agent.model.power_button import Press

log = logging.getLogger(__name__)

TAIL_BYTES = 8192
UP_S = 60.0
UP_S_PER_GIB = 0.2  # QEMU answers only once the guest's memory is set up and pinned
UP_S_PER_GPU = 15.0  # its BARs are mapped, its config space read, perhaps it is reset
ADOPT_UP_S = 0.8
LOCK_S = 1.0
READER_WAITS_S = 1.0  # for what a guest printed since its console was last looked at
LOCK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverResources:
    """What the drivers of a host share. `processor` plays what VMs have simulated."""

    launcher: Launcher
    network: Network
    supervisor: Supervisor
    processor: SecureProcessor | None = None


class Driver:
    """One enclave's."""

    def __init__(
        self,
        enclave_id: EnclaveId,
        run: RunDir,
        console: ConsoleLog,
        resources: DriverResources,
        changed: Callable[[], None],
    ) -> None:
        self._id = enclave_id
        self._run = run
        self._console = console
        self._resources = resources
        self._vm: Vm | None = None
        self._publisher = ViewPublisher(enclave_id, run, changed)
        self._actor = Actor(f"enclave {enclave_id}", self._look)

    @property
    def view(self) -> VmView:
        return self._publisher.view

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to own."""
        return self._publisher.phase is VmPhase.ABSENT and self._vm is None and self._actor.free

    async def launch(self, enclave: Enclave, order: LaunchOrder) -> ProcessIdentity:
        """Have this launch running. Raises EnclaveError, with nothing left of it.

        When the caller is cancelled the launch is undone, before anything that is ordered later.
        """
        identity: ProcessIdentity = await self._actor.ask(
            lambda: self._launch(enclave, order), undo=self._abandon
        )
        return identity

    async def finish(self, grace_s: float, serves_booted: ServesBooted) -> Press:
        """Have its guest power off, and leave all else as it is until `stop`.

        It ends when the caller is cancelled. Returns what came of its power button.
        """
        press: Press = await self._actor.ask(
            lambda: self._finish(grace_s, serves_booted), undo=_nothing
        )
        return press

    async def stop(self, grace_s: float, serves_booted: ServesBooted | None = None) -> Press:
        """Have nothing of it left. Raises EnclaveError `enclave_stuck`, or what cleaning raised.

        It goes on when the caller is cancelled. Returns what came of its power button.
        """
        press: Press = await self._actor.ask(lambda: self._stop(grace_s, serves_booted))
        return press

    async def adopt(self, row: Enclave | None, likely: ProcessIdentity | None) -> None:
        """See what is there of an earlier run of the agent. Without a row it is removed.

        `likely` is a process that may be its VM; it is verified.
        """
        await self._actor.ask(lambda: self._adopt(row, likely))

    async def close(self) -> None:
        """Let go of it. Its VM runs on; orders that are not done end as cancelled."""
        await self._actor.close()
        if self._vm is not None:
            await self._vm.close()

    async def drain_console(self) -> None:
        """For somebody who waits to read it."""
        if self._vm is not None:
            await self._vm.drain_console(READER_WAITS_S)

    async def _look(self) -> None:
        """Something happened to the VM: if it ended by itself, say so once its console is safe."""
        vm = self._vm
        watched = (VmPhase.STARTING, VmPhase.RUNNING, VmPhase.STUCK)
        if vm is None or self._publisher.phase not in watched:
            return
        if vm.end is not None and not vm.gone.is_set():
            await vm.drain_console()
        if vm.end is not None or vm.gone.is_set():
            self._publisher.show_exited(vm)

    # --- launch ------------------------------------------------------------------------------

    async def _launch(self, enclave: Enclave, order: LaunchOrder) -> ProcessIdentity:
        if self._runs(enclave.launch_uuid):
            assert self._vm is not None
            return self._vm.identity
        await self._make_room(enclave.launch_uuid)
        self._publisher.show_starting(enclave.launch_uuid)
        try:
            return await self._bring_up(enclave, order)
        except EnclaveLockHeldError as error:
            self._publisher.show_stuck(describe(error))
            raise
        except (AgentError, OSError) as error:
            raise await self._failed(error) from error

    def _runs(self, launch_uuid: str) -> bool:
        vm = self._vm
        return (
            vm is not None
            and vm.launch_uuid == launch_uuid
            and (self._publisher.phase is VmPhase.RUNNING)
        )

    async def _make_room(self, launch_uuid: str) -> None:
        """Have nothing in the way; raises EnclaveError if what is there must be stopped first."""
        view = self._publisher.view
        if view.phase is VmPhase.EXITED and view.launch_uuid != launch_uuid:
            await self._end(grace_s=0)
            await self._clear()
        elif view.phase is not VmPhase.ABSENT:
            detail = f"enclave {self._id} has a VM that is {view.phase}: stop it first"
            raise EnclaveError("enclave_occupied", detail, self._tail())

    async def _bring_up(self, enclave: Enclave, order: LaunchOrder) -> ProcessIdentity:
        vm = self._watch(enclave.launch_uuid, await self._process(enclave, order))
        self._publisher.show(VmPhase.STARTING, vm)
        try:
            await vm.wait_up(up_deadline_s(enclave))
        except MonitorError:
            if vm.gone.is_set():
                detail = self._publisher.qemu_exit(vm.exit_status)
                raise EnclaveError("qemu_exited", detail) from None
            raise
        await self._settle(vm)
        return vm.identity

    async def _process(self, enclave: Enclave, order: LaunchOrder) -> Process:
        try:
            identity = await self._resources.launcher.start(enclave, order, self._run)
        except EnclaveLockHeldError:
            # By a VM that nobody told us of: it is ours if it is this launch, else in the way.
            record = self._run.record()
            if record is not None and record.launch_uuid != enclave.launch_uuid:
                raise
            found = await find_holder(self._run, enclave.launch_uuid, None)
            if found is not None:
                return found
            if self._run.is_locked():
                raise
            identity = await self._resources.launcher.start(enclave, order, self._run)
        process = Process.open(identity)
        if process is None:
            raise EnclaveError("qemu_exited", self._publisher.qemu_exit(None))
        return process

    async def _failed(self, error: AgentError | OSError) -> EnclaveError:
        """The launch's error, once nothing is left of the launch."""
        code = error.code if isinstance(error, AgentError) else "launch_failed"
        detail, output = describe(error), self._run.output_tail()
        if output and output not in detail:
            detail = f"{detail}; QEMU said: {output}"
        await self._abandon()
        return EnclaveError(code, detail, self._tail())

    async def _abandon(self) -> None:
        """Leave nothing of the VM. If something cannot be removed, the view says so."""
        try:
            await self._end(grace_s=0)
            await self._clear()
        except AgentError as error:
            log.warning("vm not removed", extra={"enclave": self._id, "error": describe(error)})

    def _watch(self, launch_uuid: str, process: Process) -> Vm:
        record = self._run.record()
        self._vm = Vm(
            self._id,
            launch_uuid,
            process,
            run=self._run,
            console=self._console,
            changed=self._actor.nudge,
            simulated=record is not None and record.simulated,
            debug_console=record is not None and record.debug_console,
        )
        return self._vm

    # --- stop --------------------------------------------------------------------------------

    async def _finish(self, grace_s: float, serves_booted: ServesBooted) -> Press:
        vm = self._vm
        if vm is None or self._publisher.phase not in (VmPhase.RUNNING, VmPhase.STOPPING):
            return Press.NONE
        self._show_stopping(vm)
        return await ask_guest(vm, grace_s, self._publisher.show_teardown, serves_booted)

    def _show_stopping(self, vm: Vm) -> None:
        """Unless it is shown already, and perhaps how far it is."""
        if self._publisher.phase is not VmPhase.STOPPING:
            self._publisher.show(VmPhase.STOPPING, vm, Teardown.ASKED)

    async def _stop(self, grace_s: float, serves_booted: ServesBooted | None) -> Press:
        press = await self._end(grace_s, serves_booted)
        await self._clear()
        return press

    async def _end(self, grace_s: float, serves_booted: ServesBooted | None = None) -> Press:
        """End the VM, if there is one, known or not. Raises EnclaveError `enclave_stuck`."""
        record = self._run.record()
        vm = self._vm
        if vm is None and record is not None:
            vm = await self._find(record.launch_uuid, record.process)
        if vm is None:
            return Press.NONE
        self._show_stopping(vm)

        async def kill() -> None:
            await self._resources.supervisor.kill(unit_name(self._id), vm.process)

        gone, press = await end_vm(
            vm, grace_s, kill, self._publisher.show_teardown, serves_booted or _nobody_knows
        )
        if not gone:
            raise self._stuck(f"process {vm.identity.pid} was killed and is still there")
        return press

    async def _clear(self) -> None:
        """Remove everything of a VM that is gone, and say so. Idempotent.

        Raises EnclaveError `enclave_stuck` if a process that is not known holds the lock.
        """
        if self._vm is not None:
            await self._vm.close()
            self._vm = None
        try:
            with await self._locked():
                self._publisher.show_teardown(Teardown.RELEASED)
                await self._resources.network.detach(self._id)
                self._resources.supervisor.put_away(unit_name(self._id))
                self._run.remove()
        except (NetworkError, StorageError) as error:
            self._publisher.show_remains(f"cannot be removed: {describe(error)}")
            raise
        self._publisher.show_absent()

    async def _locked(self) -> contextlib.AbstractContextManager[None]:
        """The enclave's lock, held. What another start just forked may have it for a moment."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOCK_S
        while self._run.exists:
            lock = self._run.take_lock()
            if lock is not None:
                return _closing(lock)
            if loop.time() > deadline:
                raise self._stuck("its lock is held by a process that is not known")
            await asyncio.sleep(LOCK_AGAIN_S)
        return contextlib.nullcontext()

    def _stuck(self, detail: str) -> EnclaveError:
        self._publisher.show_stuck(detail)
        return EnclaveError("enclave_stuck", f"enclave {self._id}: {detail}", self._tail())

    def _tail(self) -> str:
        return self._console.tail(TAIL_BYTES).decode("utf-8", "replace")

    # --- adopt -------------------------------------------------------------------------------

    async def _adopt(self, row: Enclave | None, likely: ProcessIdentity | None) -> None:
        """One enclave that cannot be made out is told, and keeps no other one waiting."""
        try:
            await self._see_what_is_left(row, likely)
        except (AgentError, OSError) as error:
            self._stuck(describe(error))

    async def _see_what_is_left(self, row: Enclave | None, likely: ProcessIdentity | None) -> None:
        self._run.remove_scratch()
        record = self._run.record()
        launch_uuid = record.launch_uuid if record else row.launch_uuid if row else None
        ran = record.process if record else None
        ours = row is not None and row.launch_uuid == launch_uuid
        vm = await self._find(launch_uuid, ran or likely) if launch_uuid else None
        if vm is not None and ours:
            await self._resume(vm)
        elif vm is None and ours and ran and launch_uuid and not self._run.is_locked():
            # It ran, and ended while nobody looked. Without a process in the record it may never
            # have run: then there is nothing to tell, and a launch can be done again.
            self._publisher.show_remains(self._publisher.qemu_exit(None), launch_uuid, ran)
        else:
            await self._abandon()

    async def _find(self, launch_uuid: str, likely: ProcessIdentity | None) -> Vm | None:
        """Take hold of this launch's VM, if it is what has the lock."""
        process = await find_holder(self._run, launch_uuid, likely)
        return self._watch(launch_uuid, process) if process else None

    async def _resume(self, vm: Vm) -> None:
        """Go on with a VM of an earlier run; what happened to its guest meanwhile is seen."""
        self._publisher.show(VmPhase.STARTING, vm)
        with contextlib.suppress(MonitorError):  # goes on connecting; the guest may well serve
            await vm.wait_up(ADOPT_UP_S)
        await self._settle(vm)

    async def _settle(self, vm: Vm) -> None:
        """It is up, unless it ended already."""
        vm.start_harvest()
        if vm.simulated and self._resources.processor is not None:
            vm.start_processor(self._resources.processor)
        if vm.end is None and not vm.gone.is_set():
            self._publisher.show(VmPhase.RUNNING, vm)
        await self._look()


async def _nobody_knows() -> bool:
    return False


async def _nothing() -> None: ...


def up_deadline_s(enclave: Enclave) -> float:
    """How long QEMU may take until it answers."""
    devices = len(enclave.gpus) + len(enclave.switches)
    return UP_S + UP_S_PER_GIB * enclave.memory_mib / 1024 + UP_S_PER_GPU * devices


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)
