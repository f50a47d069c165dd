"""Runs a guest in a cage on this host, and looks in it for what this host's VMs need.

The guest is the tiny one that proves KVM (`accel.py`), in a cage with the devices of a
confidential one: what it does not show is a launch of the TEE's firmware itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agent.config import Tee
from agent.enclaves import cage_look
from agent.enclaves.accel import trial_rom
from agent.enclaves.argv_tee import TCG_CPU
from agent.enclaves.cage import trees_of
from agent.enclaves.cage_proof import CageProof, start_in_cage
from agent.enclaves.caging import program_of
from agent.enclaves.port import EnclaveError
from agent.enclaves.spec import QuoteService, UnixQuotes
from agent.enclaves.supervisor import Supervisor
from agent.host.process import Process

GUEST_S = 60.0  # under TCG, on a busy host
_LOOK, _GUEST = "enclave-cage-look", "enclave-cage-guest"
_AGAIN_S = 0.05
_SIGN = b"*"  # 0x2a, which the guest's last instruction but one tells


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
        await self._look(devices, quotes if tee is Tee.TDX else None)
        await self._run_guest(program, devices)
        self._proof.record(binary, tee)

    async def _look(self, devices: Sequence[Path], quotes: QuoteService | None) -> None:
        by_path = isinstance(quotes, UnixQuotes)
        asked: dict[str, Any] = {"devices": [str(one) for one in devices], "sysfs": False}
        asked["quotes"] = quotes and (
            str(quotes.path) if isinstance(quotes, UnixQuotes) else [quotes.cid, quotes.port]
        )
        python = Path(sys.executable).resolve()
        with ExitStack() as held:
            script = os.open(cage_look.__file__, os.O_RDONLY)
            held.callback(os.close, script)
            words = ["-I", "-S", f"/proc/self/fd/{script}", json.dumps(asked)]
            process = await start_in_cage(
                self._supervisor,
                self._run_dir,
                _LOOK,
                [str(python), *words],
                trees=trees_of(python),
                pass_fds=(script,),
                devices=devices,
                sockets=(quotes.path,) if isinstance(quotes, UnixQuotes) else (),
                families=() if quotes is None or by_path else ("AF_VSOCK",),
            )
        await _ended(process)
        said = (self._run_dir / _LOOK / "output").read_text(errors="replace").strip()
        self._put_away(_LOOK)
        try:
            lacks = json.loads(said)
        except ValueError:
            raise EnclaveError("cage_unproven", f"nothing can be seen in it: {said}") from None
        if lacks:
            raise EnclaveError("cage_unproven", f"in a cage are not to be had: {'; '.join(lacks)}")

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
        self._put_away(_GUEST)
        if not ran:
            raise EnclaveError("cage_unproven", f"a guest does not run in a cage: {said or accel}")

    def _put_away(self, name: str) -> None:
        self._supervisor.put_away(name)
        remove_place(self._run_dir / name)


def remove_place(place: Path) -> None:
    """The directory of a trial. Idempotent."""
    import shutil

    shutil.rmtree(place, ignore_errors=True)


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
