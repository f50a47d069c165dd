"""What is known of cages on this host: that one can be made, that a guest has run in one.

Invariant: a proof is believed of that very QEMU, kernel and TEE alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.config import Tee
from agent.enclaves.binary import BinaryIdentity, binary_identity
from agent.enclaves.cage import FIRST_UID, Cage, trees_of
from agent.enclaves.caging import program_of
from agent.enclaves.supervisor import StartRequest, Supervisor
from agent.errors import AgentError, describe
from agent.host.files import StorageError, read_bounded, write_atomic
from agent.host.process import Process
from agent.host.threads import finish_in_thread
from agent.model.enclave import ProcessIdentity

_TRIAL = "enclave-cage-trial"
TRIAL_MIB, TRIAL_TASKS = 2048, 200
# Of no address of a guest.
TRIAL_UID = FIRST_UID + (1 << 26)


class _Proven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a guest ran in."""

    tee: Tee
    kernel: str
    qemu: BinaryIdentity


class CageProof:
    """The record of `doctor --prove-cage`."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "cage-proof.json"

    async def lacks(self, binary: str, tee: Tee) -> str | None:
        """Why there is no proof for these; None if there is."""
        return await finish_in_thread(self._lacks, binary, tee)

    def record(self, binary: str, tee: Tee) -> None:
        """That a guest ran. Raises StorageError."""
        qemu = binary_identity(binary)
        if qemu is not None:
            proven = _Proven(tee=tee, kernel=os.uname().release, qemu=qemu)
            write_atomic(self._path, msgspec.json.encode(proven))

    def _lacks(self, binary: str, tee: Tee) -> str | None:
        try:
            proven = msgspec.json.decode(read_bounded(self._path, 4096), type=_Proven)
        except (StorageError, msgspec.DecodeError):
            return f"no guest has been run in a cage on this host with tee: {tee}"
        now = (tee, os.uname().release, binary_identity(binary))
        if (proven.tee, proven.kernel, proven.qemu) == now:
            return None
        return "a guest was run in a cage with another QEMU, kernel or TEE"


async def try_cage(supervisor: Supervisor, run_dir: Path, binary: str) -> str | None:
    """Why none can be made here, or None: a program that ends at once is executed in one."""
    program = shutil.which("true") or "/bin/true"
    try:
        trees = trees_of(program_of(binary))
        process = await start_in_cage(
            supervisor, run_dir, _TRIAL, [str(Path(program).resolve())], trees=trees
        )
    except (AgentError, OSError) as error:
        return describe(error)
    finally:
        supervisor.put_away(_TRIAL)
    if process is not None:
        await process.wait()
        process.reap()
        process.close()
    supervisor.put_away(_TRIAL)
    await finish_in_thread(shutil.rmtree, run_dir / _TRIAL, ignore_errors=True)
    return None


async def start_in_cage(
    supervisor: Supervisor,
    run_dir: Path,
    name: str,
    argv: Sequence[str],
    *,
    trees: tuple[Path, ...],
    pass_fds: Sequence[int] = (),
    devices: Sequence[Path] = (),
    sockets: tuple[Path, ...] = (),
    families: tuple[str, ...] = (),
    sysfs: bool = False,
) -> Process | None:
    """A program in QEMU's place, in a cage of a VM's kind; None if it ended already.

    Its directory `run_dir/name` has the output. Raises AgentError, OSError.
    """
    place = run_dir / name
    for directory in (place / "root", place / "vm"):
        directory.mkdir(parents=True, exist_ok=True)
    (place / "root").chmod(0o755)
    cage = Cage(
        uid=TRIAL_UID,
        memory_max_mib=TRIAL_MIB,
        tasks_max=TRIAL_TASKS,
        trees=trees,
        sockets=sockets,
        families=families,
        sysfs=sysfs,
    )
    request = StartRequest(
        name=name,
        argv=argv,
        pass_fds=pass_fds,
        output=place / "output",
        writable=(place / "vm",),
        devices=devices,
        cage=cage,
        root=place / "root",
    )
    identity: ProcessIdentity = await supervisor.start(request)
    return Process.open(identity)
