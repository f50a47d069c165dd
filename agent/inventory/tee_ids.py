"""Ids that the processor has for confidential guests, as the kernel's misc controller counts them.

SNP guests are charged to sev_es: the controller has no row of their own.
"""

from __future__ import annotations

from pathlib import Path

from agent.inventory.sysfs import read_text
from agent.model.inventory import TeeIds

TEE_ROWS = {"sev_es": "sev-snp", "tdx": "tdx"}


def read_tee_ids(cgroup_root: Path) -> tuple[TeeIds, ...]:
    """From the root: `name count` a line, in capacity and in current. Never fails.

    A kind with a capacity of 0 is one that the processor does not have.
    """
    capacity = _counts(read_text(cgroup_root / "misc.capacity"))
    current = _counts(read_text(cgroup_root / "misc.current"))
    return tuple(
        TeeIds(kind=kind, total=capacity[row], used=current.get(row))
        for row, kind in TEE_ROWS.items()
        if capacity.get(row)
    )


def _counts(text: str | None) -> dict[str, int]:
    rows = (line.split() for line in (text or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
