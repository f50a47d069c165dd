"""What the planner is given and what it answers. Pure values.

A `Situation` is the recorded rows of one deployment plus what was observed. A `Plan` is either a
`Write` (persist this, then ask again) or a set of actions that should be in flight until something
changes. Actions are idempotent orders; the same action wanted twice is one action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.attestation.port import Verdict
from agent.enclaves.port import ABSENT, VmPhase, VmView
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.model.ids import Bdf, EnclaveId
from agent.model.lease import Sample
from agent.model.revision import Deployment, Fault, Revision
from agent.model.update import Update
from agent.probes.port import HealthView, OutsideView


class ActionKind(StrEnum):
    """What the executor can do for one deployment."""

    PREPARE = "prepare"  # fetch and verify the artifacts of an enclave's revision
    LAUNCH = "launch"  # have the VM of this launch running
    FINISH = "finish"  # have its guest power off, with what is established still delivered
    STOP = "stop"  # have nothing of the enclave left on the host
    REQUALIFY = "requalify"  # what the enclave held is clean again
    VERIFY = "verify"  # judge the evidence over the key last seen
    APPLY_ROUTE = "apply_route"  # bring the data plane to the recorded route
    RESET = "reset"  # reset the connections still open to the enclave
    FORGET_DEPLOYMENT = "forget_deployment"  # listeners, secrets and logs of a deleted deployment
    RESTART_OLD = "restart_old"  # start the revision that is owed, once what is short has passed


@dataclass(frozen=True, slots=True)
class Action:
    """One order. `key` tells two of a kind apart: a launch uuid, a generation, a key's hash."""

    kind: ActionKind
    enclave: EnclaveId | None = None
    key: str = ""
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an action ended. `count`: of a reset, the connections; with those of tries before it."""

    fault: Fault | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """What evidence was worth at a moment. `key`: the launch and the TLS key that it is about.

    `since`: from when on every verdict over this key let it take traffic; None: this one on.
    `doubted`: since when the connections that were to bring newer evidence show another key.
    """

    key: str
    verdict: Verdict
    at: Instant
    since: Instant | None = None
    doubted: Instant | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The configured times, in seconds. `boot_deadline_s` None scales with the enclave's size.

    `reverify_s` None: nothing is claimed on this host, so nothing is judged again.
    `drop_on_loss`: an enclave that loses its attestation leaves the traffic.
    `relaunch_unhealthy_after_s` None: what stays unhealthy stays. `outside_patience_s`: how long
    an update waits after its switch to know whether clients reach it.
    """

    dwell_s: float = 5
    soak_s: float = 30
    drain_s: float = 30
    boot_deadline_s: float | None = None
    stop_grace_s: float = 60
    reset_patience_s: float = 10  # before connections that cannot be reset are given up
    switch_patience_s: float = 30  # of a data plane, where nobody else could serve
    default_start_period_s: float = 60
    probe_slack_s: float = 15
    failing_for_s: float = 6  # after the start period, before failing probes are believed
    relaunch_limit: int = 5
    relaunch_window_s: float = 1800
    relaunch_backoff_s: float = 5
    relaunch_unhealthy_after_s: float | None = None
    outside_patience_s: float = 20
    reverify_s: float | None = None
    drop_on_loss: bool = False
    pull_allowance_s: float = 300  # of a boot, for the images that its containers pull

    @property
    def by_evidence(self) -> bool:
        """Whether guests of this host give evidence, which binds their keys."""
        return self.reverify_s is not None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision may depend on.

    `boots`: seconds that guests of the size of the update's took on this host, newest first;
    `answers`: those that they took to their first answer. `certificate_boots`: when guests of a
    domain of the deployment began to boot, newest first, in seconds since 1970.
    `draining`: the connections open to an enclave that gave its traffic away, counted since then
    and in this very turn; None: they could not be counted.
    `outside`: how clients reach the listeners under the route that is recorded; None: nobody asks.
    `deaf`: the revisions whose image does not hear its power button.
    `secrets`: the current versions; `values_here`: names and versions whose value is in memory;
    `values_at_rest`: those that are kept encrypted, as far as is known.
    """

    now: Instant
    deployment: Deployment
    update: Update | None
    enclaves: Mapping[EnclaveId, Enclave]
    revisions: Mapping[int, Revision]
    policy: Policy
    vms: Mapping[EnclaveId, VmView] = field(default_factory=dict)
    health: Mapping[EnclaveId, HealthView] = field(default_factory=dict)
    verdicts: Mapping[EnclaveId, Judged] = field(default_factory=dict)
    connections: Mapping[EnclaveId, int] = field(default_factory=dict)
    draining: Mapping[EnclaveId, int | None] = field(default_factory=dict)
    applied_generation: int | None = None
    outside: OutsideView | None = None
    judge_again_at: Instant | None = None  # all evidence, since what it is judged by changed
    outcomes: Mapping[Action, Outcome] = field(default_factory=dict)
    host_stopping: bool = False
    boots: tuple[float, ...] = ()
    answers: tuple[float, ...] = ()
    certificate_boots: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    deaf: frozenset[int] = frozenset()
    secrets: Mapping[str, int] = field(default_factory=dict)
    values_here: frozenset[tuple[str, int]] = frozenset()
    values_at_rest: frozenset[tuple[str, int]] = frozenset()

    def lacks(self, row: Enclave) -> tuple[str, ...]:
        """The names of its secrets whose value is not on the host."""
        revision = self.revisions.get(row.revision)
        wanted = set(revision.awaited_secrets.items()) if revision else set()
        return tuple(sorted(name for name, _ in wanted - self.values_here - self.values_at_rest))

    def grace_s(self, row: Enclave) -> float:
        """How long its guest is to be given to power off when it is stopped."""
        return 0.0 if row.revision in self.deaf else self.policy.stop_grace_s

    def vm(self, enclave_id: EnclaveId | None) -> VmView:
        """What is observed of a VM; one that nobody knows is absent."""
        return self.vms.get(enclave_id, ABSENT) if enclave_id else ABSENT

    def healthy(self, enclave_id: EnclaveId) -> bool | None:
        """The verdict on this very launch; None while there is none."""
        view = self.health_of(enclave_id)
        return view.healthy if view else None

    def health_of(self, enclave_id: EnclaveId) -> HealthView | None:
        """The health of this very launch, never of one before."""
        row, view = self.enclaves.get(enclave_id), self.health.get(enclave_id)
        if row is None or view is None or view.launch_uuid != row.launch_uuid:
            return None
        return view

    @property
    def route_applied(self) -> bool:
        return self.applied_generation == self.deployment.route.generation

    @property
    def apply_route(self) -> Action:
        return Action(ActionKind.APPLY_ROUTE, key=str(self.deployment.route.generation))

    def gone(self, enclave_id: EnclaveId) -> bool:
        """Whether the VM of a launched enclave ended without being told to."""
        return self.vm(enclave_id).phase in (VmPhase.ABSENT, VmPhase.EXITED)

    def rebooted(self, enclave_id: EnclaveId) -> bool:
        """Whether the host was, since this launch: that took the VM, and is nobody's fault."""
        row = self.enclaves.get(enclave_id)
        if row is None or row.launched_at is None or not self.gone(enclave_id):
            return False
        return self.now.since(row.launched_at) is None

    def is_up(self, row: Enclave) -> bool:
        """Whether the VM of the recorded launch runs."""
        vm = self.vm(row.id)
        return vm.phase is VmPhase.RUNNING and vm.launch_uuid == row.launch_uuid


@dataclass(frozen=True, slots=True)
class Write:
    """What is to be persisted in one transaction. None and empty mean: leave as it is.

    `inherit`: (from, to): claims of the first enclave pass to the second, then its row goes.
    `restart_old`: a revision that was promised to be started again, as soon as it fits.
    `reassign_gpus`: an enclave that is to have other GPUs than those that it failed with.
    `failed_on`: GPUs and switches whose doing it may be that a launch did not get through its
    boot. `proven_on`: an enclave whose launch did: all that it has is good.
    `last_words`: the enclave whose console tells more of the fault of the deployment.
    """

    deployment: Deployment | None = None
    update: Update | None = None
    put_revision: Revision | None = None
    put_enclaves: tuple[Enclave, ...] = ()
    drop_enclaves: tuple[EnclaveId, ...] = ()
    inherit: tuple[EnclaveId, EnclaveId] | None = None
    samples: tuple[Sample, ...] = ()
    events: tuple[EventDraft, ...] = ()
    restart_old: int | None = None
    reassign_gpus: EnclaveId | None = None
    failed_on: tuple[Bdf, ...] = ()
    proven_on: EnclaveId | None = None
    last_words: EnclaveId | None = None
    delete_deployment: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Persist `write` and ask again; or have exactly `actions` in flight until `wake_at`."""

    write: Write | None = None
    actions: frozenset[Action] = frozenset()
    wake_at: Instant | None = None

    def also(self, other: Plan) -> Plan:
        """Both; a write of either comes first, this one's before the other's."""
        if self.write or other.write:
            return Plan(write=self.write or other.write)
        times = [at for at in (self.wake_at, other.wake_at) if at is not None]
        return Plan(
            actions=self.actions | other.actions,
            wake_at=min(times, key=lambda at: at.boottime_s, default=None),
        )


def rest(until: Instant | None = None) -> Plan:
    """Nothing to do before `until`, or before something changes."""
    return Plan(wake_at=until)


def act(*actions: Action, until: Instant | None = None) -> Plan:
    """Have these in flight."""
    return Plan(actions=frozenset(actions), wake_at=until)
