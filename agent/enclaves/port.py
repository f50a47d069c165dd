"""Enclaves as the update engine sees them: start, stop, look. One driver owns each VM."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from agent.errors import AgentError
from agent.host.wake import KeyedWake
from agent.model.enclave import Enclave, Endpoint, ProcessIdentity
from agent.model.ended_console import EndedConsole
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.measurement import MeasuredLaunch
from agent.model.power_button import Press
from agent.model.release import LocalImage, Release
from agent.model.revision import Revision


class EnclaveError(AgentError):
    """An order to an enclave failed. `code` is for machines, the text for the person."""

    def __init__(self, code: str, detail: str, console_tail: str | None = None) -> None:
        super().__init__(detail)
        self._code = code
        self.console_tail = console_tail

    @property
    def code(self) -> str:
        return self._code


class VmPhase(StrEnum):
    """What is observed of a VM, as opposed to what was meant with it."""

    ABSENT = "absent"  # no process, nothing of it on the host
    STARTING = "starting"  # QEMU is being started
    RUNNING = "running"  # QEMU runs and its guest is not stopped
    EXITED = "exited"  # the guest or QEMU ended by itself; remains are to be cleaned by `stop`
    STOPPING = "stopping"  # on the stop ladder
    STUCK = "stuck"  # killed, but still in the kernel


class Teardown(StrEnum):
    """How far a VM's end is. After that its GPUs are reset and requalified, which they tell."""

    ASKED = "asked"  # its guest was asked to power off, or is not asked at all
    GUEST_DOWN = "guest_down"  # nothing runs in it any more; its console is being saved
    QEMU_GONE = "qemu_gone"  # its process ended
    RELEASED = "released"  # no process holds any descriptor of it; what is left is removed


class VmView(msgspec.Struct, frozen=True, kw_only=True):
    """A published snapshot of one VM.

    `teardown`: while it is stopping. `exit_reason`: guest-shutdown, guest-reset, guest-panicked or
    qemu-exit.
    """

    phase: VmPhase
    launch_uuid: str | None = None
    process: ProcessIdentity | None = None
    unit: str | None = None
    exit_reason: str | None = None
    exit_detail: str | None = None
    teardown: Teardown | None = None
    simulated: bool = False  # its secure processor is played by the agent


ABSENT = VmView(phase=VmPhase.ABSENT)


class RestoredOrphan(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that runs though no row knows this launch of it. `address` None: not known."""

    enclave: EnclaveId
    launch_uuid: str | None
    process: ProcessIdentity | None
    address: str | None
    deaf: bool = False  # see LaunchOrder


class LaunchOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a launch needs beyond the enclave's row. Holds secret values: never log it."""

    revision: Revision
    release: Release
    image: LocalImage
    secrets: Mapping[str, str]
    host_id: str
    deaf: bool = False  # its image does not hear the power button, as far as is known

    def __repr__(self) -> str:
        return f"LaunchOrder({self.revision.deployment}, revision={self.revision.number})"


# Whether a guest shows, over a fresh connection, that it has booted.
ServesBooted = Callable[[], Awaitable[bool]]


class LaunchCheck(Protocol):
    """Holds what will be measured of a launch against its release. Blocks."""

    def __call__(self, release: Release, launch: MeasuredLaunch, sha256s: Sequence[str]) -> None:
        """`sha256s`: of firmware, kernel, initrd. Raises an AgentError that says what differs."""
        ...


class SecureProcessor(Protocol):
    """Plays the secure processor of VMs that have a simulated one."""

    async def serve(self, enclave_id: EnclaveId, process: ProcessIdentity, socket: Path) -> None:
        """Answer the guest of this process, which listens there, until cancelled."""
        ...


class Enclaves(Protocol):
    """All enclaves of this host."""

    changed: KeyedWake[EnclaveId]  # rung at every change of any view

    @property
    def accel(self) -> str | None:
        """`kvm` or `tcg`; None while the proof still runs."""
        ...

    async def start(self) -> None:
        """Ready the network (bridge or nothing) and begin the acceleration proof."""
        ...

    def find_unrecorded(self, rows: Sequence[Enclave]) -> Sequence[RestoredOrphan]:
        """The VMs that run although none of these rows knows their launch. For before `adopt`."""
        ...

    async def adopt(self, rows: Sequence[Enclave], spare: Sequence[RestoredOrphan] = ()) -> None:
        """Take over, by identity, the VMs of these rows that an earlier run of the agent started.

        A VM that runs although no row knows it is stopped and cleaned, unless it is spared: then
        it keeps what it has, its address included, until `remove`. Returns when every view is
        true.
        """
        ...

    async def remove(self, spared: EnclaveId, grace_s: float) -> None:
        """Stop a VM that was spared, as `stop` does."""
        ...

    def view(self, enclave_id: EnclaveId) -> VmView: ...

    async def launch(self, enclave: Enclave, order: LaunchOrder) -> ProcessIdentity:
        """Start the VM, or return the identity of the one already running with this launch uuid.

        Never runs two VMs for one enclave. Raises EnclaveError, having cleaned up.
        """
        ...

    async def finish(self, enclave: Enclave, grace_s: float, serves_booted: ServesBooted) -> Press:
        """ACPI power button: returns when the guest has powered off, or the grace is over.

        What it had open is delivered meanwhile. Its VM and its network stay until `stop`, which is
        to follow. Cancelled, it asks no more. `serves_booted` as in `stop`.
        """
        ...

    async def stop(
        self, enclave: Enclave, grace_s: float, serves_booted: ServesBooted | None = None
    ) -> Press:
        """ACPI power button, then quit, then kill; returns only when the process is gone.

        Without a grace the button is not pressed. `serves_booted` says whether the guest shows
        itself booted at that moment; without it no press is known to have been ignored.
        Everything of the enclave on the host is gone then (tap, sockets, config disks), but for
        its console log. Idempotent. Raises EnclaveError `enclave_stuck` if the kernel keeps the
        process.
        """
        ...

    def endpoint(self, enclave: Enclave, revision: Revision, guest_port: int) -> Endpoint:
        """Where the host reaches that guest port. Pure."""
        ...

    def addresses(self) -> Sequence[str]:
        """The addresses that enclaves may be given, in order of preference."""
        ...

    def console_tail(self, enclave_id: EnclaveId, max_bytes: int = 8192) -> bytes:
        """The newest of the console log, also of an enclave that is gone but not yet forgotten."""
        ...

    async def drain_console(self, enclave_id: EnclaveId) -> None:
        """Have in the log what its guest has printed by now; soon given up if QEMU hangs."""
        ...

    def ended_consoles(self, deployment: DeploymentName) -> Sequence[EndedConsole]:
        """What is kept of consoles of this deployment's enclaves that are gone, newest first."""
        ...

    def ended_console_tail(self, enclave_id: EnclaveId, max_bytes: int) -> bytes | None:
        """The newest of one of those; None: nothing is kept of this enclave."""
        ...

    def forget(self, enclave_id: EnclaveId) -> None:
        """Put the console log of an enclave that is gone among the ended ones, if it has any."""
        ...

    def forget_others(self, known: Collection[EnclaveId]) -> None:
        """The same of all enclaves but these."""
        ...

    async def close(self) -> None:
        """Let go. VMs run on."""
        ...
