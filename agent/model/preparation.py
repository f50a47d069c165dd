"""What is recorded of a GPU's or switch's cleanliness: durable, so that no crash makes it free."""

from __future__ import annotations

import msgspec

from agent.model.clock import Instant
from agent.model.gpu import CcMode
from agent.model.ids import Bdf


class GpuCondition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a device is from being handed out. One without a record was never had by anybody.

    `clean`: reset and requalified since its last enclave. `busy`: being prepared now; after a
    crash that is an intent of which nobody knows how far it came. `mode`: in force and pending, as
    the operator's tool last said; None if they differed, or it was never asked. `fault`: why the
    last preparation failed. `failed_launches`: in a row.
    """

    bdf: Bdf
    clean: bool
    busy: bool = False
    mode: CcMode | None = None
    fault: str | None = None
    failed_launches: int = 0
    since: Instant
