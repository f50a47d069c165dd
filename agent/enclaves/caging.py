"""How VMs of this host are caged: which program, and who opens devices for them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from agent.enclaves.cage import Cage
from agent.enclaves.devices import BorrowHere
from agent.enclaves.port import EnclaveError


@dataclass(frozen=True, slots=True)
class Caging:
    """`borrow`: who opens devices of the host where our own unit is closed to them."""

    borrow: BorrowHere | None = None


@dataclass(frozen=True, slots=True)
class CagedProgram:
    """`program`: by the path at which it lies in the cage."""

    cage: Cage
    program: Path


def program_of(binary: str) -> Path:
    """Where it lies, for a cage. Raises EnclaveError `qemu_not_started` if there is none.

    A script is none: what it reads and executes is not known.
    """
    found = shutil.which(binary)
    if found is None:
        raise EnclaveError("qemu_not_started", f"there is no {binary}: set qemu.binary")
    program = Path(found).resolve()
    with program.open("rb") as file:
        if file.read(2) == b"#!":
            detail = f"{program} is a script: name QEMU itself in qemu.binary"
            raise EnclaveError("qemu_not_started", detail)
    return program
