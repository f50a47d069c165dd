"""What the agent answers about its host, its capacity and itself."""

from __future__ import annotations

import datetime as dt

from msgspec import Struct

from agent.wire.views import DecisionView, DeploymentView


class _View(Struct, frozen=True, kw_only=True):
    """Base of the views."""


class AmountsView(_View, frozen=True, kw_only=True):
    """Countable capacity."""

    gpus: int
    memory_mib: int
    vcpus: int
    tee_ids: int
    addresses: int
    disk_mib: int


class FreeAndTotal(_View, frozen=True, kw_only=True):
    """What is free of what there is."""

    free: AmountsView
    total: AmountsView


class CapacityView(_View, frozen=True, kw_only=True):
    """Each decision is true for its deployment alone; only a lease reserves.

    `leased` is what leases promise: no part of `free`, but where one waits for an enclave to stop.
    """

    free: AmountsView
    total: AmountsView
    leased: AmountsView
    deployments: dict[str, DecisionView]


class HostView(_View, frozen=True, kw_only=True):
    """The host. `why` tells for each `auto` of the configuration what made it what it became."""

    id: str
    agent_version: str
    tee: str
    accel: str
    supervisor: str
    network: str
    traffic: str
    cage: str
    started_at: dt.datetime
    draining: bool
    inventory_complete: bool
    simulated: bool
    why: dict[str, str]


class GpuCountsView(_View, frozen=True, kw_only=True):
    """GPUs by state."""

    total: int
    free: int
    in_use: int
    preparing: int
    dirty: int
    unhealthy: int
    quarantined: int


class CoordinatorView(_View, frozen=True, kw_only=True):
    """The session with the coordinator, if one is configured."""

    configured: bool
    connected: bool
    last_report_at: dt.datetime | None
    session_expires_at: dt.datetime | None
    outbox: int


class ProblemView(_View, frozen=True, kw_only=True):
    """Something that a person should mend. The status port hides details of deployments."""

    code: str
    severity: str
    detail: str | None
    mend: str
    since: str


class RefusalView(_View, frozen=True, kw_only=True):
    """What guests tried and were refused: connections and datagrams to one destination.

    `protocol`: tcp, udp, icmp or another's name or number; `port` null: it has none.
    """

    destination: str
    protocol: str
    port: int | None
    count: int


class EgressView(_View, frozen=True, kw_only=True):
    """What guests may open towards other networks: `internet`, `any` or `none`, and `allow`.

    `refused`: the 20 most frequent, without those that were not tried for an hour; null where
    nobody counts (other data planes than nftables).
    """

    policy: str
    why: str
    allow: list[str]
    refused: list[RefusalView] | None


class StatusView(_View, frozen=True, kw_only=True):
    """All of it, as of one moment."""

    host: HostView
    gpus: GpuCountsView
    capacity: FreeAndTotal
    deployments: list[DeploymentView]
    coordinator: CoordinatorView
    problems: list[ProblemView]
    ready: bool
    reasons: list[str]
    observed_at: dt.datetime
    egress: EgressView | None = None


class HealthView(_View, frozen=True, kw_only=True):
    """Whether the agent lives, or is ready; the reasons say why not."""

    ready: bool
    reasons: list[str]
