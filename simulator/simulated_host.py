"""A host of pure values for the planner: VMs, probes and a data plane that obey actions at once.

It stands below the planner and the store's rows: the real planner, the real `persist` and the real
admission run on it. Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from agent.attestation.port import Verdict
from agent.capacity.supply import HostSupply
from agent.enclaves.port import VmPhase, VmView
from agent.inventory.preparation.records import begin, finish, unowned_dirty
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle, ProcessIdentity
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import Strategy
from agent.model.release import SELF_SIGNED, Artifact, Release
from agent.model.resources import Demand, Listen
from agent.model.revision import Deployment, DeploymentStatus, Fault, Wish
from agent.model.update import Step, Update
from agent.probes.port import HealthView, ListenerReach, OutsideView
from agent.store.port import Reader, Transaction
from agent.updates.admission.admit import Ask, admit_change, admit_new
from agent.updates.admission.lease_rows import expire, give_back
from agent.updates.admission.leases import admit_lease
from agent.updates.admission.reassign_gpus import reassign_gpus
from agent.updates.admission.restart_old import restart_old
from agent.updates.admission.rows import Terms
from agent.updates.admission.warm_rollback import roll_back_warm, warm_enclave
from agent.updates.engine.persist import persist
from agent.updates.orders import Caller, NewLease
from agent.updates.planner.attestation import judged_anew
from agent.updates.planner.boot_words import boot_note
from agent.updates.planner.plan import plan
from agent.updates.planner.types import (
    Action,
    ActionKind,
    Judged,
    Outcome,
    Plan,
    Policy,
    Situation,
    Write,
)
from agent.updates.planner.upkeep import GPU_QUARANTINED
from agent.updates.snapshot.rows import Observation, read_rows, situation
from agent.updates.snapshot.status import deployment_status, update_deadline
from simulator.boards import bdf, cards
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore

T = TypeVar("T")
NAME = DeploymentName("hello")
CALLER = Caller(name="test")
UNCLAIMED = Verdict(attested=None)
FIRST_KEY = "key"
# As QEMU says it of a device that does not answer, wherever it was told to look for it.
BROKEN_GPU = "QEMU ended (exit status 1): qemu-system-x86_64: vfio: error getting device info: I/O"
LISTEN = Listen(address="127.0.0.1", port=8443)
POLICY = Policy(
    dwell_s=5, soak_s=30, drain_s=20, stop_grace_s=10, relaunch_limit=3, pull_allowance_s=0
)


def release(
    tag: str, memory_mib: int = 256, gpus: int = 0, tls_mode: str = SELF_SIGNED
) -> Release:
    """A release that needs little."""
    return Release(
        repo="hello",
        tag=tag,
        digest=tag.ljust(64, "0"),
        cvm_version="0.12.0",
        layout="virtio-pci",
        cmdline="",
        debug=False,
        config=b"",
        root_hash="",
        kernel=Artifact(name="k", sha256="0"),
        initrd=Artifact(name="i", sha256="0"),
        root_disk=Artifact(name="r", sha256=None),
        demand=Demand(memory_mib=memory_mib, vcpus=1, gpus=gpus),
        start_period_s=10,
        tls_mode=tls_mode,
    )


@dataclass
class Vm:
    """One VM: which launch, how it is, and since when it is healthy."""

    launch_uuid: str
    phase: VmPhase = VmPhase.RUNNING
    booted: bool = False
    healthy: bool | None = None
    healthy_since: Instant | None = None
    connections: int = 0
    ending: int = 0  # of these, as many as end while the guest powers off
    verdict: Verdict = UNCLAIMED
    judged_at: Instant | None = None
    good_since: Instant | None = None
    key: str = FIRST_KEY  # that its TLS shows
    judged_key: str = FIRST_KEY
    doubted: Instant | None = None
    strange_since: Instant | None = None  # since when its probes have seen another than the bound
    stage: str | None = None  # under way, while it boots
    stage_since: Instant | None = None
    progressed_at: Instant | None = None
    gpus_attested: bool = False
    shut_since: Instant | None = None
    answered: bool = False
    exit_reason: str | None = None  # as the driver's view tells of one that ended
    exit_detail: str | None = None

    def judged(self) -> Judged:
        """The newest verdict."""
        assert self.judged_at is not None
        key = f"{self.launch_uuid}/{self.judged_key}"
        return Judged(key, self.verdict, self.judged_at, self.good_since, self.doubted)


@dataclass
class SimulatedHost:
    """The machine (survives a crash of the agent) and the agent's volatile memory (does not).

    `gpus`: how many cards there are; with any, each release needs one.
    """

    memory_mib: int = 4096
    gpus: int = 0
    planner: Callable[[Situation], Plan] = plan
    clock: ManualClock = field(default_factory=ManualClock)
    vms: dict[EnclaveId, Vm] = field(default_factory=dict)
    data_plane: tuple[int, EnclaveId | None] | None = None
    sick_tags: set[str] = field(default_factory=set)
    broken: set[ActionKind] = field(default_factory=set)
    evidence: Verdict | None = UNCLAIMED  # what guests give; None: nothing yet
    policy: Policy = POLICY
    fault_code: str = "broken"
    fault_detail: str | None = None
    health_fault: Fault = field(default_factory=lambda: Fault(code="unhealthy", detail="503"))
    outcomes: dict[Action, Outcome] = field(default_factory=dict)
    applied: int | None = None
    judge_again_at: Instant | None = None
    stopping: bool = False  # the host shuts down
    ended: set[str] = field(default_factory=set)  # launches that ended by themselves
    served: set[str] = field(default_factory=set)  # launches that traffic was sent to
    log: list[Action] = field(default_factory=list)
    quarantined: set[Bdf] = field(default_factory=set)
    boots: int = 1
    missing_secrets: tuple[str, ...] = ()
    bad_gpus: set[Bdf] = field(default_factory=set)  # no guest comes up with one of these
    draining: bool = False
    gone_secrets: tuple[str, ...] = ()  # whose values are not here
    past: dict[EnclaveId, HealthView] = field(default_factory=dict)  # of VMs that are gone
    tls_mode: str = SELF_SIGNED  # of what is requested
    domain: str | None = None
    asked_from_outside: bool = False
    reach: bool | None = None  # whether clients reach the listener; None: it is not known yet
    reached_before: frozenset[Listen] = frozenset()
    host_suspect: bool = False

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock.now)
        self.loop = asyncio.new_event_loop()

    def close(self) -> None:
        self.loop.close()

    def read(self, work: Callable[[Reader], T]) -> T:
        return self.loop.run_until_complete(self.store.read(work))

    def transact(self, work: Callable[[Transaction], T]) -> T:
        return self.loop.run_until_complete(self.store.transact(work))

    def supply(self) -> HostSupply:
        return HostSupply(
            memory_mib=self.memory_mib,
            vcpus=16,
            addresses=tuple(f"10.9.0.{n}" for n in range(2, 10)),
            disk_free_mib=10_000,
            boards=cards(map(bdf, range(1, self.gpus + 1))),
            draining=self.draining,
        )

    def clean_gpus(self) -> None:
        """Whatever is dirty and nobody's is requalified, as the preparer does by itself."""

        def work(tx: Transaction) -> None:
            for one in unowned_dirty(tx):
                finish(tx, [one], {one: CcMode.ON}, self.clock.now())

        self.transact(work)

    def _ready_gpus(self, row: Enclave) -> None:
        """As the executor has it done: everything that the enclave owns is clean after it."""

        def work(tx: Transaction) -> None:
            begin(tx, row.gpus, row.id, self.clock.now())
            finish(tx, row.gpus, dict.fromkeys(row.gpus, row.gpu_mode), self.clock.now())

        self.transact(work)

    def terms(self) -> Terms:
        return Terms(supply=self.supply(), now=self.clock.now(), caller=CALLER)

    def request(self, tag: str, **options: object) -> Update:
        """Deploy, or update what is there."""
        ask = Ask(
            name=NAME,
            release=release(tag, gpus=min(self.gpus, 1), tls_mode=self.tls_mode),
            listen=LISTEN,
            publish=(),
            domain=self.domain,
            variables={},
            secrets={},
            **options,  # type: ignore[arg-type]
        )
        known = self.read(lambda tx: tx.deployment(NAME)) is not None
        admit = admit_change if known else admit_new
        return self.transact(lambda tx: admit(tx, ask, self.terms()))

    def promise(self, *, own: bool, ttl_s: float, memory_mib: int) -> Lease:
        """A lease: for the deployment (`own`), or for somebody else's."""
        demand = release("any", memory_mib, min(self.gpus, 1)).demand
        wanted = NewLease(deployment=NAME if own else None, demand=demand, ttl_s=ttl_s)
        return self.transact(lambda tx: admit_lease(tx, wanted, demand, self.terms()))

    def give_back(self, lease: LeaseId) -> None:
        self.transact(lambda tx: give_back(tx, lease, self.clock.now(), CALLER))

    def expire_leases(self) -> None:
        self.transact(lambda tx: expire(tx, self.clock.now()))

    def observe(self) -> Observation:
        """What the agent would see now."""
        return Observation(
            now=self.clock.now(),
            policy=self.policy,
            vms={key: self._view(key, vm) for key, vm in self.vms.items()},
            health=self.past | {key: self._health(key, vm) for key, vm in self.vms.items()},
            verdicts={
                key: vm.judged() for key, vm in self.vms.items() if vm.judged_at is not None
            },
            connections={key: vm.connections for key, vm in self.vms.items()},
            draining={key: vm.connections for key, vm in self.vms.items()},
            applied_generation=self.applied,
            outside=self._outside() if self.asked_from_outside else None,
            judge_again_at=self.judge_again_at,
            outcomes=dict(self.outcomes),
            host_stopping=self.stopping,
        )

    def _outside(self) -> OutsideView | None:
        """As the prober of listeners: under what is in force, while that leads somewhere."""
        if self.data_plane is None or self.data_plane[1] is None:
            return None
        one = ListenerReach(
            listen=LISTEN,
            reached=self.reach,
            since=None,
            problem="no answer within 5 s" if self.reach is False else None,
            by_outside=True,
            doubtful=self.reach is None,
        )
        return OutsideView(
            generation=self.data_plane[0],
            listeners=(one,),
            reached_before=self.reached_before,
            host_suspect=self.host_suspect,
        )

    def _view(self, key: EnclaveId, vm: Vm) -> VmView:
        pid = 1000 + sum(map(ord, key))
        identity = ProcessIdentity(pid=pid, start_ticks=1, boot_id=self.clock.now().boot_id)
        return VmView(
            phase=vm.phase,
            launch_uuid=vm.launch_uuid,
            process=identity,
            exit_reason=vm.exit_reason,
            exit_detail=vm.exit_detail,
        )

    def _health(self, key: EnclaveId, vm: Vm) -> HealthView:
        strange = self._is_strange(key, vm)
        return HealthView(
            launch_uuid=vm.launch_uuid,
            answered=vm.booted or vm.answered,
            boot_complete=vm.booted,
            boot_stages={} if vm.booted or vm.stage else None,
            healthy=False if strange else vm.healthy,
            healthy_since=None if strange else vm.healthy_since,
            spki_sha256=vm.key,
            another_key=strange,
            stage=None if vm.booted else vm.stage,
            stage_since=vm.stage_since,
            progressed_at=vm.progressed_at,
            gpus_attested=vm.gpus_attested,
            shut_since=vm.shut_since,
            fault=self.health_fault if vm.healthy is False or strange else None,
        )

    def _is_strange(self, key: EnclaveId, vm: Vm) -> bool:
        """As the probes: another key than the bound one is borne as long as any failure."""
        if vm.key == FIRST_KEY and vm.strange_since is None:
            return False  # no row is read for what every guest of most stories does
        row = self.read(lambda tx: tx.enclave(key))
        if row is None or row.spki_sha256 in (None, vm.key):
            vm.strange_since = None
            return False
        vm.strange_since = vm.strange_since or self.clock.now()
        return self.clock.now().reached(vm.strange_since.plus(self.policy.failing_for_s))

    def think(self) -> Plan | None:
        """Persist until the planner answers with actions; None when the deployment is gone."""
        for _ in range(64):
            rows = self.read(lambda tx: read_rows(tx, NAME))
            if rows is None:
                return None
            answer = self.planner(situation(rows, self.observe()))
            if answer.write is None:
                self.outcomes = {a: o for a, o in self.outcomes.items() if a in answer.actions}
                return answer
            self.persist(answer.write)
        raise AssertionError("the planner does not come to rest")

    def persist(self, write: Write) -> None:
        """One transaction, as the reconciler would."""

        if write.deployment is not None:
            self._check_target(write.deployment)

        def work(tx: Transaction) -> None:
            persist(tx, NAME, write, lambda _: "tail", self.clock.now())
            if write.reassign_gpus is not None:
                now = self.clock.now()
                reassign_gpus(tx, write.reassign_gpus, self.supply(), self.quarantined, now)

        self.transact(work)

    def _check_target(self, after: Deployment) -> None:
        """Nobody is sent to a VM that is known not to run."""
        before = self.read(lambda tx: tx.deployment(NAME))
        target = after.route.enclave
        if before is not None and target is not None and target != before.route.enclave:
            vm = self.vms.get(target)
            assert vm is not None, f"traffic to {target}, which has no VM"
            assert vm.phase is VmPhase.RUNNING, f"traffic to {target}, which is {vm.phase}"

    def perform(self, action: Action, *, forget: bool = False) -> None:
        """Do it to the machine; `forget`: the agent dies before it can note the outcome."""
        self.log.append(action)
        outcome = self._do(action)
        if not forget:
            self.outcomes[action] = outcome

    def _do(self, action: Action) -> Outcome:
        if action.kind in self.broken:
            detail = self.fault_detail or f"{action.kind} is broken"
            return Outcome(fault=Fault(code=self.fault_code, detail=detail))
        row = self._row(action.enclave) if action.enclave else None
        match action.kind:
            case ActionKind.LAUNCH:
                assert row is not None
                assert row.lifecycle is Lifecycle.LAUNCHING, "a launch without a recorded intent"
                known = self.vms.get(row.id)
                assert known is None or known.launch_uuid == row.launch_uuid, "two VMs for one"
                if known is None and (suspect := self._suspect(row)):
                    return Outcome(fault=Fault(code=GPU_QUARANTINED, detail=suspect))
                if self.bad_gpus.intersection(row.gpus):
                    return Outcome(fault=Fault(code="qemu_exited", detail=BROKEN_GPU))
                if known is None:
                    self._ready_gpus(row)
                    self.vms[row.id] = Vm(launch_uuid=row.launch_uuid)
            case ActionKind.FINISH:
                assert row is not None
                assert row.lifecycle is Lifecycle.STOPPING, "asked without a recorded intent"
                if (vm := self.vms.get(row.id)) is not None:
                    vm.phase = VmPhase.STOPPING
                    vm.connections -= vm.ending
                    vm.ending = 0
            case ActionKind.STOP:
                assert row is not None
                failed = row.launched_at is None  # as a launch that did not come up
                meant = failed or self.deployment().health.ending == row.launch_uuid
                assert row.lifecycle is Lifecycle.STOPPING or meant or self._ended(row.id), (
                    "a stop without a recorded intent"
                )
                if (gone := self.vms.pop(row.id, None)) is not None:
                    self.past[row.id] = self._health(row.id, gone)
            case ActionKind.APPLY_ROUTE:
                deployment = self.read(lambda tx: tx.deployment(NAME))
                assert deployment is not None
                self.data_plane = (deployment.route.generation, deployment.route.enclave)
                self.applied = deployment.route.generation
                if (target := self.data_plane[1]) in self.vms:
                    self.served.add(self.vms[target].launch_uuid)
            case ActionKind.RESET:
                assert action.enclave is not None
                vm = self.vms.get(action.enclave)
                count = vm.connections if vm else 0
                if vm:
                    vm.connections = 0
                return Outcome(count=count)
            case ActionKind.FORGET_DEPLOYMENT:
                self.data_plane = None
                self.applied = None
            case ActionKind.PREPARE:
                assert row is not None
                if row.replaces is None:
                    self._ready_gpus(row)
            case ActionKind.REQUALIFY:
                assert row is not None
                assert row.replaces not in self.vms, "requalified under a VM that runs"
                self._ready_gpus(row)
            case ActionKind.VERIFY:
                self._judge(action.enclave)
            case ActionKind.RESTART_OLD:
                self._restart_old()
        return Outcome()

    def _restart_old(self) -> None:
        now, gone = self.clock.now(), self.gone_secrets
        self.transact(lambda tx: restart_old(tx, NAME, self.supply(), lambda *_: gone, now))

    def _suspect(self, row: Enclave) -> str | None:
        """As the preparer: what three launches in a row failed with goes into quarantine."""
        counts = self.read(lambda tx: {one.bdf: one for one in tx.gpu_conditions()})
        for one in row.gpus:
            if one in counts and counts[one].failed_launches >= 3:
                self.quarantined.add(one)
        held = self.quarantined.intersection(row.gpus)
        return f"{sorted(held)[0]}: is in quarantine" if held else None

    def _judge(self, key: EnclaveId | None) -> None:
        """As `evidence` says; a VM that gives none keeps the verdict that it has on this key."""
        vm = self.vms.get(key) if key else None
        if vm is None or self.evidence is None:
            return
        known = vm.judged() if vm.judged_at else None
        judged = judged_anew(known, f"{vm.launch_uuid}/{vm.key}", self.evidence, self.clock.now())
        if judged is not None:
            vm.verdict, vm.judged_at, vm.judged_key = judged.verdict, judged.at, vm.key
            vm.good_since, vm.doubted = judged.since, judged.doubted

    def _ended(self, key: EnclaveId) -> bool:
        vm = self.vms.get(key)
        return vm is None or vm.phase in (VmPhase.EXITED, VmPhase.STOPPING)

    def crash(self) -> None:
        """kill -9 of the agent and its restart: memory is lost, the machine is observed anew."""
        self.outcomes.clear()
        self.past.clear()
        in_force = self.data_plane
        deployment = self.read(lambda tx: tx.deployment(NAME))
        wanted = (deployment.route.generation, deployment.route.enclave) if deployment else None
        self.applied = in_force[0] if in_force and in_force == wanted else None
        for vm in self.vms.values():
            if vm.phase is VmPhase.STOPPING:
                vm.phase = VmPhase.EXITED
            vm.healthy, vm.healthy_since = None, None
            vm.judged_at = None

    def _row(self, key: EnclaveId) -> Enclave | None:
        return self.read(lambda tx: tx.enclave(key))

    def boot_all(self) -> None:
        """Guests that run finish booting and get healthy, unless their release is sick."""
        for key, vm in self.vms.items():
            row = self._row(key)
            if row is None or vm.phase is not VmPhase.RUNNING:
                continue
            revision = self.read(
                lambda tx, row=row: tx.revision(row.deployment, row.revision)  # type: ignore[misc]
            )
            vm.booted = True
            self.set_health(key, revision is not None and revision.tag not in self.sick_tags)

    def set_health(self, key: EnclaveId, healthy: bool) -> None:
        vm = self.vms[key]
        if vm.healthy is not healthy:
            vm.healthy = healthy
            vm.healthy_since = self.clock.now() if healthy else None

    def die(self, key: EnclaveId, reason: str | None = None, detail: str | None = None) -> None:
        """The guest ends by itself; QEMU stays paused, or ended with these words."""
        self.vms[key].phase = VmPhase.EXITED
        self.vms[key].exit_reason, self.vms[key].exit_detail = reason, detail
        self.ended.add(self.vms[key].launch_uuid)

    def begin_stop(self, key: EnclaveId) -> None:
        """A stop that was ordered takes its time; `perform` ends it."""
        self.ended.add(self.vms[key].launch_uuid)
        self.vms[key].phase = VmPhase.STOPPING

    def vanish(self, key: EnclaveId) -> None:
        """QEMU is gone, and nothing of it is left."""
        self.ended.add(self.vms.pop(key).launch_uuid)

    def reboot(self) -> None:
        """The host is started anew: no VM, no data plane; the agent comes up again."""
        self.boots += 1
        self.clock.reboot(f"boot-{self.boots}")
        self.ended |= {vm.launch_uuid for vm in self.vms.values()}
        self.vms.clear()
        self.data_plane = None
        self.crash()

    def status(self) -> DeploymentStatus:
        """The word that a user sees for the deployment."""
        return deployment_status(self.situation(), self.missing_secrets)

    def deadline(self) -> Instant | None:
        """That is shown of the step of the update."""
        return update_deadline(self.situation(), self.current())

    def boot_note(self) -> str | None:
        """That is shown of the boot of the update."""
        s = self.situation()
        return boot_note(s, s.enclaves[self.current().enclave])

    def situation(self) -> Situation:
        """All that the planner would be asked with."""
        rows = self.read(lambda tx: read_rows(tx, NAME))
        assert rows is not None
        return situation(rows, self.observe())

    def deployment(self) -> Deployment:
        """Its row."""
        row = self.read(lambda tx: tx.deployment(NAME))
        assert row is not None
        return row

    def settle(self, *, seconds: int = 600, step_s: float = 2.0) -> None:
        """Everything goes well from here on: perform what is wanted and let time pass."""
        for _ in range(int(seconds / step_s)):
            for _ in range(40):
                answer = self.think()
                todo = [a for a in answer.actions if a not in self.outcomes] if answer else []
                if not todo:
                    break
                for action in sorted(todo, key=lambda a: (a.kind, a.enclave or "")):
                    self.perform(action)
            for action in list(self.outcomes):  # failed or unfinished: the reconciler tries again
                del self.outcomes[action]
            self.boot_all()
            self.clean_gpus()
            self.clock.advance(step_s)

    def serve(self, tag: str) -> None:
        """Request a tag and let everything go well."""
        self.request(tag)
        self.settle()

    def until(self, step: Step) -> None:
        """Let time pass until the update is at this step."""
        for _ in range(300):
            if self.current().step is step:
                return
            self.settle(seconds=2)
        raise AssertionError(f"the update does not come to {step}")

    def current(self) -> Update:
        """The newest update."""
        return self.read(lambda tx: tx.updates(NAME, limit=1))[0]

    def serving_tag(self) -> str | None:
        """The tag that new connections reach, seen in the data plane."""
        if self.data_plane is None or self.data_plane[1] is None:
            return None
        enclave_id = self.data_plane[1]
        row = self.read(lambda tx: tx.enclave(enclave_id))
        if row is None or row.id not in self.vms:
            return None
        revision = self.read(lambda tx: tx.revision(NAME, row.revision))
        return revision.tag if revision else None

    def roll_back_warm(self) -> Update | None:
        """Roll back to the version that is kept warm, as the service would."""

        def work(tx: Transaction) -> Update | None:
            deployment, running = tx.deployment(NAME), tx.running_update(NAME)
            if deployment is None or running is None or running.from_revision is None:
                return None
            row = warm_enclave(tx, deployment, running.from_revision)
            if row is None or row.id not in self.vms or self._ended(row.id):
                return None
            return roll_back_warm(tx, deployment, row, self.clock.now(), CALLER)

        return self.transact(work)

    def wish(self, wish: Wish) -> None:
        """Stop or delete, as the service would."""
        import msgspec

        def work(tx: Transaction) -> None:
            deployment = tx.deployment(NAME)
            if deployment is not None and tx.running_update(NAME) is None:
                wished = msgspec.structs.replace(deployment, wish=wish, restart_old_revision=None)
                tx.put_deployment(wished)

        self.transact(work)

    def flag(self, **flags: bool) -> None:
        """Accept or cancel, as the service would."""
        import msgspec

        def work(tx: Transaction) -> None:
            update = tx.running_update(NAME)
            if update is not None:
                tx.put_update(msgspec.structs.replace(update, **flags))

        self.transact(work)


__all__ = ["NAME", "SimulatedHost", "Strategy", "Vm"]
