"""Where the values of secrets lie: in memory only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from agent.host.files import in_memory

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own within it


def secrets_place(
    run_dir: Path, state_dir: Path, shared_memory: Path = SHARED_MEMORY
) -> Path | None:
    """In the run directory, which is a tmpfs on a real host; where it is not, in the shared memory
    of the host under a name of this installation. None if neither is in memory.
    """
    if in_memory(run_dir):
        return run_dir / "secrets"
    if in_memory(shared_memory):
        of = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:16]
        return shared_memory / f"enclave-agent-{os.geteuid()}-{of}"
    return None
