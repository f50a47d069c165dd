"""What a confidential launch is measured over: the bytes and numbers that make its digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SNP_CPU_MODEL = "EPYC-v4"  # the contract's; its signature is in every vCPU's measured state


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLaunch:
    """One launch. The paths are of the bytes themselves, best by way of an open descriptor
    (`/proc/<pid>/fd/<n>`): what has a name can be exchanged behind it. The hashes (hex) are of
    kernel and initrd, where they were just computed over these very bytes; else those are read.
    """

    vcpus: int
    firmware: Path
    kernel: Path
    initrd: Path
    cmdline: str
    kernel_sha256: str | None = None
    initrd_sha256: str | None = None
