"""Leases: the only thing that reserves capacity, until a time on this boot's clock."""

from __future__ import annotations

import msgspec

from agent.model.clock import Instant
from agent.model.ids import Bdf, DeploymentName, LeaseId
from agent.model.reasons import Strategy
from agent.model.resources import Demand


class Lease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A promise of capacity until `expires_at`. `holder` is the caller that it was made to.

    A reboot of the host expires it, since `expires_at` is a moment of one boot: what was promised
    (cleaned GPUs, free memory) is not known to be there any more. `expired`: its claims were given
    back, and its end is an event. `request` marks the request that made it, if that had a key.
    """

    id: LeaseId
    holder: str
    deployment: DeploymentName | None
    strategy: Strategy
    demand: Demand
    gpus: tuple[Bdf, ...]
    address: str | None
    created_at: Instant
    expires_at: Instant
    expired: bool = False
    request: str | None = None


class ClaimKind:
    """Kinds of things that exactly one holder may have."""

    GPU = "gpu"
    ADDRESS = "address"
    LISTEN = "listen"


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exclusive ownership. holder: an enclave's or lease's id (gpu, address), or a deployment's
    name (listen).
    """

    kind: str
    key: str
    holder: str


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured duration of this host's own history (`downtime`, `boot`, ...), in seconds."""

    kind: str
    key: str
    value_s: float
