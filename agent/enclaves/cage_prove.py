"""Runs a guest in a cage on this host, and looks in it for what this host's VMs need.

The guest is the tiny one that proves KVM (`accel.py`), in a cage with the devices of a
confidential one: what it does not show is a launch of the TEE's firmware itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import assert_never

from agent.config import Tee
from agent.enclaves import cage_look
from agent.enclaves.accel import trial_rom
from agent.enclaves.argv_tee import TCG_CPU
from agent.enclaves.cage import trees_of
from agent.enclaves.cage_proof import CageProof, start_in_cage
from agent.enclaves.caging import program_of
from agent.enclaves.port import EnclaveError
from agent.enclaves.spec import QuoteService, UnixQuotes, VsockQuotes
from agent.enclaves.supervisor import Supervisor
from agent.host.process import Process

GUEST_S = 60.0  # under TCG, on a busy host
_LOOK, _GUEST = "enclave-cage-look", "enclave-cage-guest"
_AGAIN_S = 0.05
_SIGN = b"*"  # 0x2a, which the guest's last instruction but one tells


class CageLook:
    """Looks from inside a cage of this supervisor."""

    def __init__(self, supervisor: Supervisor, run_dir: Path) -> None:
        self._supervisor = supervisor
        self._run_dir = run_dir

    async def lacks(
        self,
        name: str,
        devices: Sequence[Path],
        *,
        quotes: QuoteService | None = None,
        sysfs: bool = False,
    ) -> list[str]:
        """What a VM would not find there. `name`: of the trial. Raises AgentError, OSError."""
        sockets = (quotes.path,) if isinstance(quotes, UnixQuotes) else ()
        families = ("AF_VSOCK",) if isinstance(quotes, VsockQuotes) else ()
        asked = {
            "devices": [str(one) for one in devices],
            "sysfs": sysfs,
            "quotes": _where(quotes),
        }
        python = Path(sys.executable).resolve()
        with ExitStack() as held:
            script = os.open(cage_look.__file__, os.O_RDONLY)
            held.callback(os.close, script)
            words = ["-I", "-S", f"/proc/self/fd/{script}", json.dumps(asked)]
            process = await start_in_cage(
                self._supervisor,
                self._run_dir,
                name,
                [str(python), *words],
                trees=trees_of(python),
                pass_fds=(script,),
                devices=devices,
                sockets=sockets,
                families=families,
                sysfs=sysfs,
            )
        await _ended(process)
        said = (self._run_dir / name / "output").read_text(errors="replace").strip()
        put_away(self._supervisor, self._run_dir, name)
        try:
            return [str(one) for one in json.loads(said)]
        except ValueError:
            return [f"a program that looks around: {said or 'it said nothing'}"]


def _where(quotes: QuoteService | None) -> str | list[int] | None:
    match quotes:
        case None:
            return None
        case UnixQuotes(path):
            return str(path)
        case VsockQuotes(cid, port):
            return [cid, port]
    assert_never(quotes)


def put_away(supervisor: Supervisor, run_dir: Path, name: str) -> None:
    """All of a trial, whose process is gone. Idempotent."""
    supervisor.put_away(name)
    shutil.rmtree(run_dir / name, ignore_errors=True)


class CageProver:
    """In cages of this supervisor. Raises EnclaveError `cage_unproven`, and any AgentError."""

    def __init__(self, supervisor: Supervisor, run_dir: Path, state_dir: Path) -> None:
        self._supervisor = supervisor
        self._run_dir = run_dir
        self._proof = CageProof(state_dir)

    async def prove(self, binary: str, tee: Tee, quotes: QuoteService) -> None:
        """Look, run the guest, and record that it ran. Nothing of it is left."""
        kvm = Path("/dev/kvm").exists()
        if tee in (Tee.SEV_SNP, Tee.TDX) and not kvm:
            raise EnclaveError("cage_unproven", "/dev/kvm is not there")
        devices = [Path("/dev/kvm")] if kvm else []
        if tee is Tee.SEV_SNP:
            devices.append(Path("/dev/sev"))
        program = program_of(binary)
        look = CageLook(self._supervisor, self._run_dir)
        if lacks := await look.lacks(_LOOK, devices, quotes=quotes if tee is Tee.TDX else None):
            raise EnclaveError("cage_unproven", f"in a cage are not to be had: {'; '.join(lacks)}")
        await self._run_guest(program, devices)
        self._proof.record(binary, tee)

    async def _run_guest(self, program: Path, devices: Sequence[Path]) -> None:
        accel, cpu = ("kvm", "host") if devices else ("tcg", TCG_CPU)
        with ExitStack() as held:
            rom = held.enter_context(trial_rom())
            told = os.memfd_create("told")
            held.callback(os.close, told)
            writing = os.open(f"/proc/self/fd/{told}", os.O_WRONLY)
            held.callback(os.close, writing)
            argv = [
                *(
                    str(program),
                    "-accel",
                    accel,
                    "-cpu",
                    cpu,
                    "-machine",
                    "q35",
                ),
                *("-m", "16M", "-nodefaults", "-no-user-config", "-display", "none"),
                *("-bios", f"/proc/self/fd/{rom}", "-add-fd", f"fd={writing},set=1"),
                *("-chardev", "file,id=told,path=/dev/fdset/1"),
                *("-device", "isa-debugcon,iobase=0xf4,chardev=told"),
            ]
            process = await start_in_cage(
                self._supervisor,
                self._run_dir,
                _GUEST,
                argv,
                trees=trees_of(program),
                pass_fds=(rom, writing),
                devices=devices,
            )
            ran = await _says(told, process)
            if process is not None:
                process.kill()
            await _ended(process)
        said = (self._run_dir / _GUEST / "output").read_text(errors="replace").strip()
        put_away(self._supervisor, self._run_dir, _GUEST)
        if not ran:
            raise EnclaveError("cage_unproven", f"a guest does not run in a cage: {said or accel}")


async def _says(told: int, process: Process | None) -> bool:
    """Whether the guest gave its sign before it, or its time, ended."""
    deadline = asyncio.get_running_loop().time() + GUEST_S
    while True:
        over = process is None or process.ended
        if os.pread(told, 1, 0) == _SIGN:
            return True
        if over or asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_AGAIN_S)


async def _ended(process: Process | None) -> None:
    if process is None:
        return
    try:
        async with asyncio.timeout(GUEST_S):
            await process.wait()
        process.reap()
    finally:
        process.kill()
        process.close()
