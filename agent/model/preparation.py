"""What is recorded of a GPU's or switch's cleanliness: durable, so that no crash makes it free."""

from __future__ import annotations

import msgspec

from agent.model.clock import Instant
from agent.model.gpu import CcMode, ModeLimit
from agent.model.ids import Bdf


class GpuCondition(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How far a device is from being handed out. One without a record, and one that is clean and
    not `used`, was never had by anybody.

    `clean`: reset and requalified since its last enclave. `busy`: being prepared now; after a
    crash that is an intent of which nobody knows how far it came. `mode`: in force and pending, as
    the operator's tool last said; None if they differed, or it was never asked. `mode_told`: what
    the tool said where that is no mode in force and pending. `fault`, `mend`: why the last
    preparation failed, and what helps. `failed_launches`: in a row.

    `used`: somebody asked for it once, so that it may be cleaned without being asked for again;
    `card`: which one that was (the key of a `KnownGpu`), since after a reboot another may have its
    address. `failures`: preparations in a row that failed; `mode_failures`: of its change of mode.
    `resets`: those of the last hour. `healed`: when it was last reset because its health asked.
    """

    bdf: Bdf
    clean: bool
    busy: bool = False
    mode: CcMode | None = None
    mode_told: str | None = None
    fault: str | None = None
    mend: str | None = None
    failed_launches: int = 0
    used: bool = False
    card: str | None = None
    failures: int = 0
    mode_failures: int = 0
    limits: tuple[ModeLimit, ...] = ()
    resets: tuple[Instant, ...] = ()
    healed: Instant | None = None
    since: Instant


def is_clean(row: GpuCondition | None) -> bool:
    """Whether a device may be handed on as it is: the one judge of it, by its record.

    It was reset and requalified since its last enclave; or nobody has had it, and it is reset for
    its first (`is_qualified`).
    """
    return row is None or row.clean


def is_qualified(row: GpuCondition | None) -> bool:
    """Whether it is clean by our own work, so that nothing is left to do before its use."""
    return row is not None and row.used and is_clean(row)
