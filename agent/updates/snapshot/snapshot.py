"""The published snapshot: what every reader (status, command line, report, metrics) reads.

The engine replaces it whole; nobody mutates it. `version` grows with every replacement.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from agent.attestation.port import Verdict
from agent.enclaves.port import VmView
from agent.model.clock import Instant
from agent.model.egress import EgressFacts
from agent.model.enclave import Enclave, EnclaveState
from agent.model.ids import DeploymentName
from agent.model.inventory import Inventory
from agent.model.reasons import Decision, DowntimeEstimate
from agent.model.resources import Amounts
from agent.model.revision import Deployment, DeploymentStatus, Fault, Revision
from agent.model.update import Update
from agent.probes.port import HealthView, ListenerReach


class Feasibility(StrEnum):
    """How a rollback to a revision would go."""

    WARM = "warm"
    COLD = "cold"
    FETCH = "fetch"
    IMPOSSIBLE = "impossible"


class RollbackOption(msgspec.Struct, frozen=True, kw_only=True):
    """One older revision and how far away it is. `default`: a rollback goes there by itself."""

    revision: int
    tag: str
    feasibility: Feasibility
    reason: str | None = None
    default: bool = False


class EnclaveFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One enclave: its row, what is observed of it, and what is concluded.

    `reached`: whether clients reach it; None: they are not sent to it, or nobody knows.
    `revision`: what it runs.
    """

    row: Enclave
    revision: Revision | None = None
    debug: bool = False  # of a debug release: it has a console, and no evidence
    state: EnclaveState
    vm: VmView
    health: HealthView | None = None
    verdict: Verdict | None = None
    connections: int | None = None
    reached: bool | None = None

    @property
    def healthy(self) -> bool | None:
        """By its own probes, and not cut off from its clients; None: not known."""
        own = self.health.healthy if self.health else None
        return False if own and self.reached is False else own


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What this host's own history says of an update that is not ready yet.

    `boot`: of guests of its size; `downtime`: of a stop_then_start; `ready_at`: about.
    """

    boot: DowntimeEstimate | None = None
    downtime: DowntimeEstimate | None = None
    ready_at: Instant | None = None


class DeploymentFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment. `revision`: the active one, or the newest while nothing ever served.

    `update`: the running one, or the newest. `update_deadline`: of its step, if any. `boot_note`:
    why its boot seems to stand still, where that is known. `degraded`: why its status is that.
    `refused`: limit → how many connections or packets the data plane refused by it. `outside`: how
    clients reach its listeners, while they are asked.
    """

    row: Deployment
    status: DeploymentStatus
    degraded: Fault | None = None
    revision: Revision | None
    update: Update | None
    update_deadline: Instant | None = None
    boot_note: str | None = None
    expected: Estimate = Estimate()
    enclaves: tuple[EnclaveFacts, ...] = ()
    refused: Mapping[str, int] = {}
    outside: tuple[ListenerReach, ...] = ()
    stale_secrets: tuple[str, ...] = ()
    rollback: tuple[RollbackOption, ...] = ()
    next_update: Decision


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a person should mend. severity: info, warning, error.

    `of_tenant`: it is about a deployment, and may say what is not for everybody on the host.
    """

    code: str
    severity: str
    detail: str
    mend: str
    since: Instant
    of_tenant: bool = False


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What each `auto` became, and why."""

    value: str
    reason: str


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The host."""

    id: str
    agent_version: str
    tee: Resolved
    accel: Resolved
    supervisor: Resolved
    network: Resolved
    traffic: Resolved
    started_at: Instant
    draining: bool
    inventory_complete: bool
    simulated: bool
    free: Amounts
    total: Amounts
    leased: Amounts = Amounts()
    cage: Resolved = Resolved(value="off", reason="")
    egress: EgressFacts | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is to read. `ready`: False with reasons until adopted and reconciled.

    `store_damage`: why the store cannot be trusted; all else is then as it was last known.
    `inventory`: None before the first look. `network_repairs`: since the agent started, by what
    was put back.
    """

    version: int
    observed_at: Instant
    ready: bool
    not_ready_reasons: tuple[str, ...]
    host: HostFacts
    deployments: dict[DeploymentName, DeploymentFacts]
    inventory: Inventory | None = None
    problems: tuple[Problem, ...] = ()
    store_damage: str | None = None
    network_repairs: dict[str, int] = {}
