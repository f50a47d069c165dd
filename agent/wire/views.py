"""What the agent answers. Fields may be added, never change their meaning; null is not known.

Clients ignore fields that they do not know, so that an older client reads a newer agent.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from agent.model.enclave import EnclaveState
from agent.model.reasons import DecidedStrategy, ReasonCode, Strategy
from agent.model.revision import DeploymentStatus, Slot
from agent.model.update import Step, UpdateStatus


class _View(Struct, frozen=True, kw_only=True):
    """Base of the views."""


class ReasonView(_View, frozen=True, kw_only=True):
    """One reason, with the numbers that made it."""

    code: ReasonCode
    detail: str | None
    needed: int | UnsetType = UNSET
    available: int | UnsetType = UNSET


class EstimateView(_View, frozen=True, kw_only=True):
    """Seconds, from this host's own history; samples 0 means a default."""

    p50: float
    p90: float
    samples: int


class DecisionView(_View, frozen=True, kw_only=True):
    """What admission says.

    `warnings` stand in nobody's way.
    `certificate_boots_left`: of a guest that asks for a public certificate at each boot, how many
    boots it has until it is not launched again by itself when it ends. `probes`: in a plan for a
    deployment, how the workload would be asked.
    """

    strategy: DecidedStrategy
    gpus: list[str]
    reasons: list[ReasonView]
    warnings: list[str] = []
    retry_after_s: float | UnsetType = UNSET
    downtime_estimate_s: EstimateView | UnsetType = UNSET
    certificate_boots_left: int | UnsetType = UNSET
    probes: ProbesView | UnsetType = UNSET


class FaultView(_View, frozen=True, kw_only=True):
    """What went wrong. `probe`: the failing one; `response`: what it was answered last.

    `console_tail`: from the stage that failed, without what firmware says of itself.
    """

    code: str
    detail: str | None
    step: str | None
    probe: str | None
    response: str | None = None
    console_tail: str | None


class ProbeView(_View, frozen=True, kw_only=True):
    """One probe: `passing` of the `needed` passes in a row, and its last answer.

    `unknown`, where it is true: that answer tells nothing of what was asked about; the other
    probes decide.
    """

    name: str
    passing: int
    needed: int
    last: str | None
    unknown: bool | UnsetType = UNSET


class ProgressView(_View, frozen=True, kw_only=True):
    """How far an update is. Not an event: it may change without a trace.

    By this host's own history: `boot_estimate_s` of guests of this size, `downtime_estimate_s` of
    a stop_then_start, `ready_estimate_at` about when it will be ready; null without a history.
    `note`: why its boot seems to stand still, where that is known.
    """

    boot_stages: dict[str, Any] | None
    probes: list[ProbeView]
    deadline_at: dt.datetime | None
    percent: int | None
    boot_estimate_s: EstimateView | None = None
    downtime_estimate_s: EstimateView | None = None
    ready_estimate_at: dt.datetime | None = None
    note: str | None = None


class NextStepView(_View, frozen=True, kw_only=True):
    """A command to type, and what it is good for."""

    command: str
    why: str


class UpdateView(_View, frozen=True, kw_only=True):
    """An update. `serves`, `next_steps`: of one that failed or was called off, while it is the
    newest: what serves at this moment, and what to type next, the likeliest first.
    """

    id: str
    deployment: str
    status: UpdateStatus
    strategy: Strategy
    step: Step
    revision: int
    tag: str
    from_revision: int | None
    from_tag: str | None
    reasons: list[ReasonView]
    warnings: list[str] = []
    staging: bool
    created_at: dt.datetime
    started_at: dt.datetime | None
    ready_at: dt.datetime | None
    switched_at: dt.datetime | None
    finished_at: dt.datetime | None
    downtime_s: float | None
    reset_connections: int
    error: FaultView | None
    serves: str | None = None
    next_steps: list[NextStepView] = []
    progress: ProgressView


class PublishView(_View, frozen=True, kw_only=True):
    """One more listener of the host."""

    listen: str
    guest_port: int


class ProbesView(_View, frozen=True, kw_only=True):
    """How the workload is asked whether it lives.

    `path` and `host`: what the deployment named; `asked_path` and `asked_host`: what is asked for
    with this release's shim; null where no path can be asked, and for the guest's address.
    `healthy_when`: which answers are good, in words; where no path can be asked, what decides.
    """

    path: str | None
    host: str | None
    asked_path: str | None
    asked_host: str | None
    healthy_when: str | None = None


class RollbackView(_View, frozen=True, kw_only=True):
    """One older revision: `warm`, `cold`, `fetch` or `impossible`, with the reason.

    `default`: the version before the one that serves, where a rollback goes that names none.
    """

    revision: int
    tag: str
    feasibility: str
    reason: str | None
    default: bool


class ReachView(_View, frozen=True, kw_only=True):
    """A listener, asked as a client asks it.

    `reached`: null while it is not known; `since`: since when that is so. `problem`: what happened
    to the newest attempt, null if it was answered. `asked_from`: `outside` of the host's own
    stack, or the `host` itself, by which no forwarding is seen.
    """

    listen: str
    reached: bool | None
    since: dt.datetime | None
    problem: str | None
    asked_from: str


class ContainerView(_View, frozen=True, kw_only=True):
    """One container. `state`: in its guest's words; null while the guest tells of none, so that it
    is only known from the release. `played`: the guest says that nothing of its image runs.
    """

    name: str
    image: str
    state: str | None
    played: bool = False


class EnclaveView(_View, frozen=True, kw_only=True):
    """One VM. `debug`: of a debug release, which has a console and gives no evidence.

    `healthy`: by its probes, and clients that are sent to it are known to be let through.
    `guest`: whose guest it is and of which version, by its own word or else by its release.
    `containers`: what it runs; `played`: those of which it says that it only acts them out.
    """

    id: str
    deployment: str
    slot: Slot
    revision: int
    state: EnclaveState
    teardown: str | None = None
    gpus: list[str]
    memory_mib: int
    vcpus: int
    address: str
    pid: int | None
    unit: str | None
    healthy: bool | None
    attested: bool | None
    simulated: bool
    connections: int | None
    started_at: dt.datetime | None
    uptime_s: float | None
    guest_metrics: dict[str, Any] | None
    debug: bool = False
    played: list[str] = []
    guest: str | None = None
    containers: list[ContainerView] = []


class DeploymentView(_View, frozen=True, kw_only=True):
    """A deployment. `update`: the running one, or the newest. `simulated`: an enclave of it is.

    `variables`, `secrets` (names), `stale_secrets`: null on the status port, and so is every
    detail that may quote a guest. Variables that look like credentials are masked.
    `warnings`: what the user may not expect of the revision that serves.
    `domain`: what clients ask for; `guest_domain`: the name that its guest is told (DOMAIN).
    `degraded`: why the status is that, in the words of the probe that fails, say.
    `refused`: limit (its key in the configuration) → how many connections or, where the kernel
    counts, packets it refused since the agent started.
    `reach`: how clients reach its listeners; empty while nobody is sent to it, or nobody asks.
    `health_falls`: how often what served well was not well any more; `fell_at`: the newest times,
    of the enclave that serves.
    """

    name: str
    status: DeploymentStatus
    tag: str | None
    revision: int | None
    active_slot: Slot | None
    listen: str | None
    publish: list[PublishView]
    domain: str | None
    guest_domain: str | None = None
    variables: dict[str, str] | None
    secrets: list[str] | None
    stale_secrets: list[str] | None
    debug: bool
    simulated: bool = False
    rollback: list[RollbackView]
    next_update: DecisionView
    update: UpdateView | None
    enclaves: list[EnclaveView]
    error: FaultView | None
    degraded: FaultView | None = None
    probes: ProbesView | None = None
    refused: dict[str, int] = {}
    reach: list[ReachView] = []
    health_falls: int = 0
    fell_at: list[dt.datetime] = []
    warnings: list[str] = []
