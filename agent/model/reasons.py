"""Why something is refused, and what an admission decided."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.model.ids import Bdf


class Strategy(StrEnum):
    """How an update moves a deployment."""

    FRESH = "fresh"
    BLUE_GREEN = "blue_green"
    STOP_THEN_START = "stop_then_start"


class DecidedStrategy(StrEnum):
    """A strategy, or the refusal of one."""

    FRESH = "fresh"
    BLUE_GREEN = "blue_green"
    STOP_THEN_START = "stop_then_start"
    REFUSE = "refuse"


class ReasonCode(StrEnum):
    """The closed set of reason codes (append only)."""

    INVENTORY_INCOMPLETE = "inventory_incomplete"
    HOST_DRAINING = "host_draining"
    UPDATE_IN_PROGRESS = "update_in_progress"
    GPU_GROUP_ILLEGAL = "gpu_group_illegal"
    GPUS_INSUFFICIENT = "gpus_insufficient"
    GPUS_DIRTY = "gpus_dirty"
    GPUS_QUARANTINED = "gpus_quarantined"
    MODE_SWITCH_NEEDED = "mode_switch_needed"
    IOMMU_GROUP_NOT_VIABLE = "iommu_group_not_viable"
    GPU_MODE_UNAVAILABLE = "gpu_mode_unavailable"
    MEMORY_INSUFFICIENT = "memory_insufficient"
    VCPUS_INSUFFICIENT = "vcpus_insufficient"
    TEE_IDS_EXHAUSTED = "tee_ids_exhausted"
    TEE_UNAVAILABLE = "tee_unavailable"
    ADDRESSES_EXHAUSTED = "addresses_exhausted"
    # Not said by this agent, which chooses no port: an enclave has an address to itself, and a
    # listener is named by its request (`listen_in_use`).
    PORTS_EXHAUSTED = "ports_exhausted"
    LISTEN_IN_USE = "listen_in_use"
    DISK_INSUFFICIENT = "disk_insufficient"
    VOLUME_EXCLUSIVE = "volume_exclusive"
    SECRETS_MISSING = "secrets_missing"
    RELEASE_INVALID = "release_invalid"
    SIGNATURE_REQUIRED = "signature_required"
    MEASUREMENT_MISMATCH = "measurement_mismatch"
    LEASE_EXPIRED = "lease_expired"
    STRATEGY_UNAVAILABLE = "strategy_unavailable"
    STAGING_NEEDS_BLUE_GREEN = "staging_needs_blue_green"
    CERTIFICATE_BOOTS = "certificate_boots"
    TLS_CHALLENGE_EXCLUSIVE = "tls_challenge_exclusive"
    LAUNCH_FORMAT_UNSUPPORTED = "launch_format_unsupported"
    DOMAIN_MISSING = "domain_missing"
    UNCLEAN_STOP = "unclean_stop"
    DEBUG_UNATTESTED = "debug_unattested"
    GPUS_NOT_CONFIDENTIAL = "gpus_not_confidential"
    TAG_MOVED = "tag_moved"
    LAUNCH_IMPOSSIBLE = "launch_impossible"


class Reason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reason, with the numbers that made it."""

    code: ReasonCode
    detail: str
    needed: int | None = None
    available: int | None = None


class DowntimeEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, from this host's own history; samples 0 means a default."""

    p50: float
    p90: float
    samples: int

    def __add__(self, more: DowntimeEstimate) -> DowntimeEstimate:
        """Of both, one after the other; the samples are this one's."""
        return DowntimeEstimate(
            p50=self.p50 + more.p50, p90=self.p90 + more.p90, samples=self.samples
        )


class AskedProbes(msgspec.Struct, frozen=True, kw_only=True):
    """How a revision's workload is asked whether it lives.

    `path` and `host`: what the deployment named; `asked_path` and `asked_host`: what that comes
    to; None where no path can be asked, and for the guest's address. `healthy_when`: what counts.
    """

    path: str | None
    host: str | None
    asked_path: str | None
    asked_host: str | None
    healthy_when: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What admission says. Reasons are present for a refusal and for why not a better strategy.

    `warnings` stand in nobody's way: sentences about what the user may not expect.
    `certificate_boots_left`: of a guest that asks for a public certificate at each boot, how many
    it has until it is not launched again by itself; None of all others. `probes`: in a plan for a
    deployment, how the revision that it would get is asked.
    """

    strategy: DecidedStrategy
    gpus: tuple[Bdf, ...] = ()
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    retry_after_s: float | None = None
    downtime_estimate_s: DowntimeEstimate | None = None
    certificate_boots_left: int | None = None
    probes: AskedProbes | None = None

    @property
    def refused(self) -> bool:
        return self.strategy is DecidedStrategy.REFUSE
