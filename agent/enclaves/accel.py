"""Whether KVM really runs a guest here: tried, bounded in time, once a boot and QEMU binary.

That /dev/kvm opens proves nothing: there are hosts where QEMU aborts on the processor model, where
firmware crawls a thousand times slower than emulation, and where a guest hangs at its entry and
burns a core. So a guest of 222 bytes is run with the very options of a VM: it counts in real mode
(firmware's mode), enters long mode with paging, writes and reads memory, leaves to the hypervisor
by CPUID, and ends QEMU with a status that nothing else gives.
Invariant: a trial leaves no process behind; one that cannot be killed is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.config import Accel
from agent.enclaves.binary import BinaryIdentity, binary_identity
from agent.enclaves.spec import VmAccel
from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.enclaves.supervisor_detached import DetachedSupervisor
from agent.errors import describe
from agent.host.files import StorageError, read_bounded, write_atomic
from agent.host.process import PROC, Process, boot_id
from agent.host.threads import finish_in_thread

TRIAL_S = 3.0
STARVED_S = 15.0  # the trial is niced: on a busy host it gets more time, until it used TRIAL_S
KILL_S = 5.0
NICE = 10

_EXIT_STATUS = "exit status 85"  # isa-debug-exit gives (0x2a << 1) | 1
_ROM_BYTES = 64 << 10
_RESET_VECTOR = 0xFFF0

# .code16  cli; cld; mov $20000000,%ecx; 1: dec %ecx; jnz 1b; lgdt %cs:gdtr; cr0.PE; ljmp $8,prot
# .code32  data segments; 3 page tables at 0x1000 map 2 MiB; cr3, cr4.PAE, EFER.LME, cr0.PG; ljmp
# .code64  a quadword written to and compared at 0x4000; cpuid; out %al=0x2a,$0xf4; hlt for ever
_CODE = bytes.fromhex(
    "fafc66b9002d31016649 75fc2e660f0116d800 0f20c00c010f22c0 66ea23000f000800"
    "66b810008ed88ec08ed0 bf0010000031c0b9000c0000f3ab c7050010000003200000"
    "c7050020000003300000 c7050030000083000000 b8001000000f22d8 0f20e00c200f22e0"
    "b9800000c00f3280cc010f30 0f20c00d000000800f22c0 ea87000f001800"
    "48b8f0debc9a78563412 4889042500400000 4839042500400000 750b"
    "31c00fa266baf400b02aee f4ebfd 0f1f80000000000000000000000000"
    "ffff0000009bcf00 ffff00000093cf00 ffff0000009baf00 1f00b8000f00"
)


class AccelVerdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs the guests, and why. `usable` is False if KVM is insisted on and does not run."""

    value: VmAccel
    reason: str
    usable: bool = True


class _Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trial's result, kept for as long as it holds."""

    boot_id: str
    user: str | None
    binary: BinaryIdentity
    works: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """Of a trial."""

    works: bool
    reason: str
    lasting: bool = False  # it costs seconds, and would end the same in this boot


class AccelProof:
    """Finds out what runs the guests. That may take seconds: readiness must not wait for it."""

    def __init__(
        self,
        *,
        wanted: Accel,
        binary: str,
        user: str | None,
        state_dir: Path,
        run_dir: Path,
        device: Path = Path("/dev/kvm"),
    ) -> None:
        self._wanted = wanted
        self._binary = binary
        self._user = user
        self._cache = state_dir / "accel.json"
        self._run_dir = run_dir
        self._device = device

    async def resolve(self) -> AccelVerdict:
        """The verdict. Never raises but for cancellation, which leaves no process behind."""
        if self._wanted is Accel.TCG:
            return AccelVerdict(value=VmAccel.TCG, reason="configured")
        trial = await self._known_or_tried()
        if trial.works:
            return AccelVerdict(value=VmAccel.KVM, reason=trial.reason)
        if self._wanted is Accel.KVM:
            reason = f"configured, but KVM does not run guests here: {trial.reason}"
            return AccelVerdict(value=VmAccel.KVM, reason=reason, usable=False)
        return AccelVerdict(value=VmAccel.TCG, reason=f"no KVM: {trial.reason}")

    async def _known_or_tried(self) -> TrialOutcome:
        if not os.access(self._device, os.R_OK | os.W_OK):
            why = "cannot be opened" if self._device.exists() else "does not exist"
            return TrialOutcome(works=False, reason=f"{self._device} {why}")
        binary = binary_identity(self._binary)
        if binary is None:
            return TrialOutcome(works=False, reason=f"there is no {self._binary}")
        boot = boot_id()
        known = self._read_cache()
        this = (boot, self._user, binary)
        if known is not None and (known.boot_id, known.user, known.binary) == this:
            return TrialOutcome(works=known.works, reason=known.reason)
        output = self._run_dir / "accel-trial"
        trial = await Trial(self._binary, "kvm", "host", output, self._user).run()
        if trial.lasting:
            known = _Known(
                boot_id=boot,
                user=self._user,
                binary=binary,
                works=trial.works,
                reason=trial.reason,
            )
            await finish_in_thread(self._write_cache, known)
        return trial

    def _read_cache(self) -> _Known | None:
        try:
            return msgspec.json.decode(read_bounded(self._cache, 4096), type=_Known)
        except (StorageError, msgspec.DecodeError):
            return None

    def _write_cache(self, known: _Known) -> None:
        with contextlib.suppress(StorageError):  # then it is tried again at the next start
            write_atomic(self._cache, msgspec.json.encode(known))


class Trial:
    """One run of the tiny guest. `output` is a file to be written, and removed after."""

    def __init__(
        self,
        binary: str,
        accel: str,
        cpu: str,
        output: Path,
        user: str | None = None,
        *,
        trial_s: float = TRIAL_S,
        starved_s: float = STARVED_S,
    ) -> None:
        self._binary = binary
        self._accel = accel
        self._cpu = cpu
        self._output = output
        self._user = user
        self._trial_s = trial_s
        self._starved_s = starved_s

    async def run(self) -> TrialOutcome:
        """Run it; whatever happens, its process is killed before this returns or raises."""
        try:
            with trial_rom() as rom, contextlib.ExitStack() as held:
                # A cancellation comes after the start: then what was started is held already.
                process = await finish_in_thread(self._start, rom, held)
                _restrain(process.identity.pid, math.ceil(3 * self._trial_s))
                timely = await self._watch(process)
                process.kill()
                return await self._conclude(process, timely)
        except SupervisorError as error:
            return TrialOutcome(works=False, reason=describe(error))
        finally:
            self._output.unlink(missing_ok=True)

    def _start(self, rom: int, held: contextlib.ExitStack) -> Process:
        """`held` kills it and lets go of it."""
        argv = [
            *(self._binary, "-accel", self._accel, "-cpu", self._cpu, "-machine", "q35"),
            *("-m", "16M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-bios", f"/proc/self/fd/{rom}"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        ]
        request = StartRequest(
            name="accel-trial", argv=argv, pass_fds=(rom,), output=self._output, user=self._user
        )
        identity = DetachedSupervisor(oom_score_adj=1000).start_here(request)
        process = Process.open(identity)
        assert process is not None, "our own child cannot be gone before we waited for it"
        held.callback(process.close)
        held.callback(process.kill)
        return process

    async def _watch(self, process: Process) -> bool:
        """Whether it ended in time."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while True:
            try:
                async with asyncio.timeout(self._trial_s):
                    await process.wait()
            except TimeoutError:
                starved = _cpu_seconds(process.identity.pid) < self._trial_s / 2
                if starved and loop.time() - begin < self._starved_s:
                    continue
                return False
            else:
                return True

    async def _conclude(self, process: Process, timely: bool) -> TrialOutcome:
        try:
            async with asyncio.timeout(KILL_S):
                await process.wait()
        except TimeoutError:
            pid = process.identity.pid
            reason = f"the trial guest hangs, and its process {pid} cannot be killed"
            return TrialOutcome(works=False, reason=reason, lasting=True)
        status = process.reap()
        if not timely:
            reason = "a trial guest did not get through in time"
            return TrialOutcome(works=False, reason=reason, lasting=True)
        if status != _EXIT_STATUS:
            words = self._output.read_text(errors="replace").strip().splitlines()
            told = "; ".join([status or "it is gone", *words[:1]])
            return TrialOutcome(works=False, reason=f"QEMU failed with a trial guest: {told}")
        return TrialOutcome(works=True, reason="a trial guest ran", lasting=True)


def _restrain(pid: int, cpu_s: int) -> None:
    """Be nice; and should we be killed now, let the kernel end a guest that burns a core."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
        resource.prlimit(pid, resource.RLIMIT_CPU, (cpu_s, cpu_s))


@contextlib.contextmanager
def trial_rom() -> Iterator[int]:
    """An open file with the guest, to be inherited."""
    image = bytearray(_ROM_BYTES)
    image[: len(_CODE)] = _CODE
    image[_RESET_VECTOR : _RESET_VECTOR + 3] = b"\xe9\x0d\x00"  # jmp to the image's beginning
    fd = os.memfd_create("accel-trial")
    try:
        os.write(fd, image)
        yield fd
    finally:
        os.close(fd)


def _cpu_seconds(pid: int) -> float:
    """Processor time that a process has used; 0 if it is gone."""
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    user, system = stat[stat.rindex(b")") + 2 :].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
