"""An engine in memory: real values of the model, the port's errors, and time that a test drives.

Nothing happens by itself. `advance` takes a deployment's update one step along the good path,
`finish` to its end, `fail` ends it badly; each publishes a new snapshot and rings the bell.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from agent.attestation.port import Evidence, NothingClaimedError, Verdict
from agent.enclaves.port import VmPhase, VmView
from agent.host.wake import Wake
from agent.inventory.port import Chain
from agent.model.egress import EgressFacts
from agent.model.enclave import Enclave, EnclaveState, Lifecycle, ProcessIdentity
from agent.model.ended_console import EndedConsole
from agent.model.event import GENESIS, Event, EventDraft, chain
from agent.model.ids import Bdf, DeploymentName, EnclaveId, new_enclave_id, new_update_id
from agent.model.reasons import (
    DecidedStrategy,
    Decision,
    DowntimeEstimate,
    Reason,
    ReasonCode,
    Strategy,
)
from agent.model.resources import Amounts, Demand
from agent.model.revision import (
    Deployment,
    DeploymentStatus,
    Fault,
    Revision,
    Route,
    Slot,
    Wish,
)
from agent.model.update import (
    AwaitingAccept,
    Booting,
    Decided,
    Draining,
    Finished,
    Launching,
    Preparing,
    Retiring,
    Soaking,
    Step,
    Switching,
    Update,
    UpdateState,
    Verifying,
)
from agent.probes.port import HealthView, ProbeView
from agent.releases.port import KeptImage, ReleaseNotFoundError, ReleaseSourceError
from agent.updates.admission.gpus import NoPreparation
from agent.updates.errors import (
    ConflictError,
    PrunedError,
    RefusedError,
    StaleEpochError,
    UnknownNameError,
)
from agent.updates.orders import Caller, Change, ChipChange, NewDeployment, PlanQuestion
from agent.updates.secrets.standing import SecretState, standing
from agent.updates.snapshot.snapshot import (
    DeploymentFacts,
    EnclaveFacts,
    Estimate,
    Feasibility,
    HostFacts,
    Problem,
    Resolved,
    RollbackOption,
    Snapshot,
)
from simulator.fake_gpus import FakeGpus
from simulator.manual_clock import ManualClock
from tests.fakes.leasing import leasing_of

MEMORY_MIB = 512
TOTAL = Amounts(memory_mib=4096, vcpus=8, addresses=8, disk_mib=100_000)
STAGES = ("config", "network", "identity", "certificate", "firewall", "containers", "shim")


@dataclass
class _Entry:
    row: Deployment
    revisions: list[Revision] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)  # newest first
    enclaves: dict[EnclaveId, EnclaveFacts] = field(default_factory=dict)
    secrets: dict[str, int] = field(default_factory=dict)


class FakePreparation(NoPreparation):
    """Notes which GPUs are to be recovered. Set `raises`."""

    def __init__(self) -> None:
        self.recovered: list[str] = []
        self.raises: Exception | None = None

    async def recover(self, bdf: Bdf, tell: Chain) -> None:
        del tell
        if self.raises is not None:
            raise self.raises
        self.recovered.append(bdf)


class FakeEngine:
    """Satisfies `agent.updates.port.Engine`."""

    def __init__(self, *, ready: bool = True) -> None:
        self.clock = ManualClock()
        self.gpus = FakeGpus()
        self.preparation = FakePreparation()
        self.changed = Wake()
        self.leases = leasing_of(self.clock)
        self.calls: list[tuple[str, Caller]] = []
        self.values: dict[str, str] = {}  # newest secret values, as a vault would hold them
        self.ready = ready
        self.simulated = False
        self.egress: EgressFacts | None = None
        self.draining = False
        self.epoch = 0
        self.problems: tuple[Problem, ...] = ()
        self.raises: Exception | None = None  # the next order raises it
        self.consoles: dict[str, bytes] = {}
        self.ended: list[EndedConsole] = []  # newest first; their text is in `consoles`
        self.kept: list[KeptImage] = []
        self.evidences: dict[EnclaveId, Evidence] = {}
        self.oldest_event = 1
        self.answer_to_plan: Decision | None = None
        self.planned: list[PlanQuestion] = []
        self.expected = Estimate()
        self.refused: dict[str, int] = {}  # of every deployment
        self._entries: dict[DeploymentName, _Entry] = {}
        self._events: list[Event] = []
        self._version = 0
        self.started_at = self.clock.now()
        self.publish()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    # What the port promises

    async def deploy(self, request: NewDeployment, caller: Caller) -> Update:
        self._order("deploy", caller)
        if request.name in self._entries:
            raise ConflictError("exists", f"{request.name} exists already; relaunch updates it")
        self._resolve(request.tag)
        self._admit(DecidedStrategy.FRESH)
        self._refuse_taken(request)
        now = self.clock.now()
        entry = _Entry(
            row=Deployment(
                name=request.name,
                wish=Wish.RUN,
                active_slot=None,
                active_revision=None,
                route=Route(generation=0, enclave=None),
                last_revision=0,
                created_at=now,
            ),
            secrets=dict.fromkeys(request.secrets, 1),
        )
        self.values.update(request.secrets)
        revision = Revision(
            deployment=request.name,
            number=1,
            repo=request.repo,
            tag=request.tag,
            release_digest="0" * 64,
            demand=Demand(memory_mib=MEMORY_MIB, vcpus=1),
            listen=request.listen,
            publish=request.publish,
            domain=request.domain,
            probes=request.probes,
            health_path=request.probes.path or "/",
            variables=dict(request.variables),
            secrets=dict(entry.secrets),
            container_names=("web",),
            container_images=(f"registry.test/web@sha256:{'1' * 64}",),
            image_version="0.12.0",
            image_source="tinfoilsh/cvmimage",
            created_at=now,
        )
        self._entries[request.name] = entry
        return self._begin(
            entry, revision, Strategy.FRESH, staging=request.staging, request=caller.request
        )

    async def update(self, name: DeploymentName, change: Change, caller: Caller) -> Update:
        self._order("update", caller)
        entry = self._entry(name)
        old = entry.revisions[-1]
        tag = old.tag if change.tag is msgspec.UNSET else change.tag
        self._resolve(tag)
        self._refuse_busy(entry)
        decision = self._decide(change.strategy)
        self._admit(decision)
        for key, value in (change.secrets or {}).items():
            self._put_secret(entry, key, value)
        variables = dict(old.variables)
        if change.variables is None:
            variables = {}
        elif change.variables is not msgspec.UNSET:
            merged = {**variables, **change.variables}
            variables = {key: value for key, value in merged.items() if value is not None}
        revision = msgspec.structs.replace(
            old,
            number=entry.row.last_revision + 1,
            tag=tag,
            listen=old.listen if change.listen is msgspec.UNSET else change.listen,
            publish=old.publish if change.publish is msgspec.UNSET else change.publish,
            domain=old.domain if change.domain is msgspec.UNSET else change.domain,
            probes=change.probes.applied(old.probes),
            variables=variables,
            secrets=dict(entry.secrets),
            created_at=self.clock.now(),
        )
        return self._begin(
            entry, revision, Strategy(decision), staging=change.staging, request=caller.request
        )

    async def rollback(self, name: DeploymentName, to: str | int | None, caller: Caller) -> Update:
        self._order("rollback", caller)
        entry = self._entry(name)
        self._refuse_busy(entry)
        active = entry.row.active_revision
        older = [one for one in entry.revisions if one.number != active]
        chosen = [one for one in older if to is None or to in {one.tag, one.number}]
        if not chosen:
            raise UnknownNameError(f"{name} has no such revision to roll back to")
        revision = msgspec.structs.replace(chosen[-1], number=entry.row.last_revision + 1)
        return self._begin(entry, revision, Strategy.BLUE_GREEN, staging=False)

    async def accept(self, name: DeploymentName, caller: Caller) -> Update:
        self._order("accept", caller)
        update = self._running(self._entry(name))
        if not isinstance(update.state, AwaitingAccept):
            raise ConflictError("not_ready", f"the update is in step {update.step}")
        return self.put(name, msgspec.structs.replace(update, accepted=True, state=Switching()))

    async def cancel(self, name: DeploymentName, caller: Caller) -> Update:
        self._order("cancel", caller)
        update = self._running(self._entry(name))
        if update.decided is not Decided.UNDECIDED:
            raise ConflictError(
                "switched", f"traffic has moved; roll back: enclave-agent rollback {name}"
            )
        self._end(name, Decided.CANCEL, update.step, None)
        return self._entry(name).updates[0]

    async def retry(self, name: DeploymentName, caller: Caller) -> Update:
        self._order("retry", caller)
        entry = self._entry(name)
        if not entry.updates or entry.updates[0].decided is not Decided.FAIL:
            raise ConflictError("nothing_to_retry", "the newest update has not failed")
        return self._begin(entry, entry.revisions[-1], entry.updates[0].strategy, staging=False)

    async def start(self, name: DeploymentName, caller: Caller) -> Update:
        self._order("start", caller)
        entry = self._entry(name)
        if entry.row.wish is not Wish.STOP:
            raise ConflictError("not_stopped", f"{name} is not stopped")
        entry.row = msgspec.structs.replace(entry.row, wish=Wish.RUN)
        return self._begin(entry, entry.revisions[-1], Strategy.FRESH, staging=False)

    async def stop(self, name: DeploymentName, caller: Caller) -> None:
        self._order("stop", caller)
        entry = self._entry(name)
        self._refuse_busy(entry)
        entry.enclaves.clear()
        entry.row = msgspec.structs.replace(entry.row, wish=Wish.STOP, active_slot=None)
        self._note(EventDraft(kind="deployment", deployment=name, to="stopped"))
        self.publish()

    async def delete(self, name: DeploymentName, caller: Caller) -> None:
        self._order("delete", caller)
        self._entry(name)
        del self._entries[name]
        self._note(EventDraft(kind="deployment", deployment=name, to="deleted"))
        self.publish()

    async def set_secrets(
        self, name: DeploymentName, values: Mapping[str, str | None], caller: Caller
    ) -> tuple[str, ...]:
        self._order("set_secrets", caller)
        entry = self._entry(name)
        for key, value in values.items():
            self._put_secret(entry, key, value)
        self.publish()
        return self._stale(entry)

    async def secrets(self, name: DeploymentName) -> tuple[SecretState, ...]:
        self._raise()
        entry = self._entry(name)
        return standing(entry.secrets, entry.revisions[-1], ())

    async def plan(self, question: PlanQuestion) -> Decision:
        self._raise()
        self.planned.append(question)
        if self.answer_to_plan is not None:
            return self.answer_to_plan
        if question.deployment is None:
            return Decision(strategy=DecidedStrategy.FRESH)
        if question.deployment not in self._entries:
            if question.tag is None:
                raise UnknownNameError(f"no deployment '{question.deployment}'")
            return Decision(strategy=DecidedStrategy.FRESH)
        return self._next(self._entries[question.deployment])

    async def drain(self, caller: Caller) -> None:
        self._order("drain", caller)
        self.draining = True
        self.publish()

    async def undrain(self, caller: Caller) -> None:
        self._order("undrain", caller)
        self.draining = False
        self.publish()

    async def see_epoch(self, caller: Caller) -> None:
        if caller.epoch is not None and caller.epoch < self.epoch:
            raise StaleEpochError(caller.epoch, self.epoch)
        self.epoch = caller.epoch or self.epoch

    async def reset_epoch(self, caller: Caller) -> int:
        self._order("reset_epoch", caller)
        forgotten, self.epoch = self.epoch, 0
        return forgotten

    async def accept_chip(self, name: DeploymentName, caller: Caller) -> ChipChange:
        self._order("accept_chip", caller)
        self._entry(name)
        return ChipChange(source="CHIP_ID", old="aa", new="bb")

    async def updates(self, name: DeploymentName) -> list[Update]:
        self._raise()
        return list(self._entry(name).updates)

    async def events(self, after: int, limit: int = 1000) -> Sequence[Event]:
        self._raise()
        if after + 1 < self.oldest_event:
            raise PrunedError(self.oldest_event)
        return [event for event in self._events if event.sequence > after][:limit]

    async def evidence(self, enclave_id: EnclaveId, nonce: bytes | None) -> Evidence:
        if enclave_id not in self.evidences:
            raise NothingClaimedError("There is no evidence on this host (tee: none).")
        found = self.evidences[enclave_id]
        return msgspec.structs.replace(found, nonce=nonce.hex()) if nonce else found

    async def images(self) -> list[KeptImage]:
        return self.kept

    async def prune_images(self, unused_for_s: float) -> list[KeptImage]:
        since = self.clock.now().wall - dt.timedelta(seconds=unused_for_s)
        gone = [one for one in self.kept if not one.needed and one.used_at <= since]
        self.kept = [one for one in self.kept if one not in gone]
        return gone

    async def console(self, enclave_id: EnclaveId, max_bytes: int) -> bytes:
        if enclave_id not in self.consoles:
            raise UnknownNameError(f"no console of {enclave_id}")
        return self.consoles[enclave_id][-max_bytes:]

    async def ended_consoles(self, name: DeploymentName) -> list[EndedConsole]:
        return [one for one in self.ended if one.deployment == name]

    # What a test does

    def advance(self, name: str, seconds: float = 1.0) -> Update:
        """One step along the good path of the running update."""
        entry = self._entry(DeploymentName(name))
        update = self._running(entry)
        self.clock.advance(seconds)
        now = self.clock.now()
        following: dict[type[UpdateState], UpdateState] = {
            Preparing: Launching(),
            Launching: Booting(deadline=now.plus(120)),
            Booting: Verifying(grace_until=now, deadline=now.plus(60)),
            Verifying: AwaitingAccept() if update.staging else Switching(),
            AwaitingAccept: Switching(),
            Switching: Soaking(until=now.plus(30), drain_until=now.plus(60)),
            Soaking: Draining(until=now.plus(30)),
            Draining: Retiring(),
        }
        following_state = following.get(type(update.state))
        if update.strategy is Strategy.FRESH and isinstance(update.state, Switching):
            following_state = None
        if following_state is None:
            self._end(DeploymentName(name), Decided.COMPLETE, update.step, None)
            return entry.updates[0]
        return self.put(name, self._stamped(update, following_state))

    def finish(self, name: str) -> Update:
        """The good path to its end; a staged update is accepted on the way."""
        update = self._running(self._entry(DeploymentName(name)))
        while update.running:
            update = self.advance(name)
        return update

    def fail(self, name: str, fault: Fault) -> Update:
        update = self._running(self._entry(DeploymentName(name)))
        self._end(DeploymentName(name), Decided.FAIL, update.step, fault)
        return self._entry(DeploymentName(name)).updates[0]

    def put(self, name: str, update: Update) -> Update:
        """Put the update's row, with what an enclave would look like in such a state."""
        entry = self._entry(DeploymentName(name))
        before = entry.updates[0]
        entry.updates[0] = update
        entry.enclaves[update.enclave] = self._facts(entry, update)
        if isinstance(update.state, Switching) or update.decided is Decided.SWITCH:
            entry.row = msgspec.structs.replace(
                entry.row,
                active_slot=update.slot,
                active_revision=update.revision,
                route=Route(generation=entry.row.route.generation + 1, enclave=update.enclave),
            )
        self._note(
            EventDraft(
                kind="update", deployment=name, update=update.id, from_=before.step, to=update.step
            )
        )
        self.publish()
        return update

    def note(self, reason: str) -> None:
        """One more event, about nothing."""
        self._note(EventDraft(kind="note", reason=reason))

    def prune_events(self, oldest: int) -> None:
        self.oldest_event = oldest
        self._events = [event for event in self._events if event.sequence >= oldest]

    def change_event(self, sequence: int, **members: str) -> None:
        """Forge the past."""
        self._events = [
            msgspec.structs.replace(event, **members) if event.sequence == sequence else event
            for event in self._events
        ]

    def drop_event(self, sequence: int) -> None:
        self._events = [event for event in self._events if event.sequence != sequence]

    def set_facts(self, name: str, enclave_id: str, **members: object) -> None:
        entry = self._entry(DeploymentName(name))
        known = entry.enclaves[EnclaveId(enclave_id)]
        entry.enclaves[EnclaveId(enclave_id)] = msgspec.structs.replace(known, **members)
        self.publish()

    def publish(self) -> None:
        self._version += 1
        used = Amounts(
            memory_mib=MEMORY_MIB * self._running_enclaves(),
            vcpus=self._running_enclaves(),
            addresses=self._running_enclaves(),
        )
        self._snapshot = Snapshot(
            version=self._version,
            observed_at=self.clock.now(),
            ready=self.ready,
            not_ready_reasons=() if self.ready else ("adopting enclaves",),
            host=HostFacts(
                id="host-1",
                agent_version="0.1.0",
                tee=Resolved(value="none", reason="configured"),
                accel=Resolved(value="tcg", reason="the bounded proof of KVM failed"),
                supervisor=Resolved(value="detached", reason="no systemd"),
                network=Resolved(value="tap", reason="a bridge could be made"),
                traffic=Resolved(value="nftables", reason="a scratch table could be made"),
                started_at=self.started_at,
                draining=self.draining,
                inventory_complete=True,
                simulated=self.simulated,
                free=TOTAL - used,
                total=TOTAL,
                egress=self.egress,
            ),
            deployments={
                name: self._deployment_facts(entry) for name, entry in self._entries.items()
            },
            inventory=self.gpus.inventory,
            problems=self.problems,
        )
        self.changed.notify()

    # How it keeps its word

    def _order(self, what: str, caller: Caller) -> None:
        self._raise()
        self.calls.append((what, caller))

    def _raise(self) -> None:
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error

    def _entry(self, name: DeploymentName) -> _Entry:
        if name not in self._entries:
            raise UnknownNameError(f"no deployment '{name}'")
        return self._entries[name]

    def _running(self, entry: _Entry) -> Update:
        if not entry.updates or not entry.updates[0].running:
            raise ConflictError("no_update", f"no update of {entry.row.name} is running")
        return entry.updates[0]

    def _resolve(self, tag: str) -> None:
        if tag.startswith("missing"):
            raise ReleaseNotFoundError(f"no release {tag} at the source")
        if tag.startswith("offline"):
            raise ReleaseSourceError("the source does not answer")

    def _running_enclaves(self) -> int:
        return sum(len(entry.enclaves) for entry in self._entries.values())

    def _refuse(self, code: ReasonCode, detail: str, **numbers: int) -> RefusedError:
        reason = Reason(code=code, detail=detail, **numbers)
        return RefusedError(Decision(strategy=DecidedStrategy.REFUSE, reasons=(reason,)))

    def _refuse_busy(self, entry: _Entry) -> None:
        if entry.updates and entry.updates[0].running:
            raise self._refuse(
                ReasonCode.UPDATE_IN_PROGRESS,
                f"update {entry.updates[0].id} of {entry.row.name} is running",
            )

    def _refuse_taken(self, request: NewDeployment) -> None:
        wanted = [request.listen, *(one.listen for one in request.publish)]
        for entry in self._entries.values():
            for taken in entry.revisions[-1].listeners:
                if any(listen.overlaps(taken.listen) for listen in wanted):
                    raise self._refuse(
                        ReasonCode.LISTEN_IN_USE, f"{taken.listen} is {entry.row.name}'s"
                    )

    def _decide(self, wanted: Strategy | None) -> DecidedStrategy:
        free = TOTAL.memory_mib - MEMORY_MIB * self._running_enclaves()
        fits = free >= MEMORY_MIB
        if wanted is Strategy.BLUE_GREEN and not fits:
            raise self._no_memory(free)
        if wanted is not None:
            return DecidedStrategy(wanted)
        return DecidedStrategy.BLUE_GREEN if fits else DecidedStrategy.STOP_THEN_START

    def _no_memory(self, free: int) -> RefusedError:
        detail = f"{MEMORY_MIB} MiB are needed, {free} MiB are free"
        return self._refuse(
            ReasonCode.MEMORY_INSUFFICIENT, detail, needed=MEMORY_MIB, available=free
        )

    def _admit(self, decision: DecidedStrategy) -> None:
        if self.draining:
            raise self._refuse(ReasonCode.HOST_DRAINING, "the host is draining")
        free = TOTAL.memory_mib - MEMORY_MIB * self._running_enclaves()
        if decision is DecidedStrategy.FRESH and free < MEMORY_MIB:
            raise self._no_memory(free)

    def _put_secret(self, entry: _Entry, key: str, value: str | None) -> None:
        if value is None:
            entry.secrets.pop(key, None)
            return
        entry.secrets[key] = entry.secrets.get(key, 0) + 1
        self.values[key] = value

    def _stale(self, entry: _Entry) -> tuple[str, ...]:
        given = entry.revisions[-1].secrets
        return tuple(sorted(k for k, v in entry.secrets.items() if given.get(k) != v))

    def _begin(
        self,
        entry: _Entry,
        revision: Revision,
        strategy: Strategy,
        *,
        staging: bool,
        request: str | None = None,
    ) -> Update:
        before = entry.revisions[-1] if entry.enclaves else None
        if revision.number not in {one.number for one in entry.revisions}:
            entry.revisions.append(revision)
        entry.row = msgspec.structs.replace(entry.row, last_revision=revision.number)
        slot = entry.row.active_slot
        update = Update(
            id=new_update_id(),
            deployment=entry.row.name,
            strategy=strategy,
            staging=staging,
            revision=revision.number,
            tag=revision.tag,
            enclave=new_enclave_id(),
            slot=slot.other if slot else Slot.BLUE,
            from_revision=before.number if before else None,
            from_tag=before.tag if before else None,
            from_enclave=next(iter(entry.enclaves), None),
            state=Preparing(),
            request=request,
            created_at=self.clock.now(),
        )
        entry.updates.insert(0, update)
        self._note(
            EventDraft(kind="update", deployment=entry.row.name, update=update.id, to="prepare")
        )
        self.publish()
        return update

    def _stamped(self, update: Update, state: UpdateState) -> Update:
        now = self.clock.now()
        stamps: dict[str, object] = {"state": state}
        if isinstance(state, Booting):
            stamps["started_at"] = now
        if isinstance(state, AwaitingAccept | Switching) and update.ready_at is None:
            stamps["ready_at"] = now
        if isinstance(state, Switching):
            stamps["decided"] = Decided.SWITCH
        if isinstance(state, Soaking):
            stamps["switched_at"] = now
            stamps["downtime_s"] = 0.0
        return msgspec.structs.replace(update, **stamps)

    def _end(
        self, name: DeploymentName, decided: Decided, step: Step, fault: Fault | None
    ) -> None:
        entry = self._entry(name)
        update = msgspec.structs.replace(
            entry.updates[0],
            state=Finished(step=step),
            decided=decided,
            fault=fault,
            finished_at=self.clock.now(),
        )
        entry.updates[0] = update
        gone = update.from_enclave if decided is Decided.COMPLETE else update.enclave
        if gone is not None:
            entry.enclaves.pop(gone, None)
        if decided is Decided.FAIL and not entry.enclaves:
            entry.row = msgspec.structs.replace(entry.row, fault=fault)
        self._note(EventDraft(kind="update", deployment=name, update=update.id, to=update.status))
        self.publish()

    def _facts(self, entry: _Entry, update: Update) -> EnclaveFacts:
        now = self.clock.now()
        booted = not isinstance(update.state, Preparing | Launching | Booting)
        up = not isinstance(update.state, Preparing | Launching)
        known = entry.enclaves.get(update.enclave)
        row = Enclave(
            id=update.enclave,
            deployment=update.deployment,
            slot=update.slot,
            revision=update.revision,
            lifecycle=Lifecycle.RUNNING,
            launch_uuid="00000000-0000-0000-0000-000000000001",
            address="10.215.0.2",
            memory_mib=MEMORY_MIB,
            vcpus=1,
            created_at=update.created_at,
            launched_at=known.row.launched_at if known and known.row.launched_at else now,
        )
        identity = ProcessIdentity(pid=4711, start_ticks=1, boot_id=now.boot_id)
        revision = next(one for one in entry.revisions if one.number == update.revision)
        return EnclaveFacts(
            row=row,
            revision=revision,
            state=EnclaveState.RUNNING if booted else EnclaveState.BOOTING,
            vm=VmView(phase=VmPhase.RUNNING, process=identity if up else None),
            health=_health(row, booted) if up else None,
            verdict=Verdict(attested=None),
            connections=0,
        )

    def _next(self, entry: _Entry) -> Decision:
        return Decision(
            strategy=DecidedStrategy.BLUE_GREEN,
            downtime_estimate_s=DowntimeEstimate(p50=0.0, p90=0.0, samples=0),
        )

    def _deployment_facts(self, entry: _Entry) -> DeploymentFacts:
        update = entry.updates[0] if entry.updates else None
        active = [one for one in entry.revisions if one.number == entry.row.active_revision]
        deadline = getattr(update.state, "deadline", None) if update else None
        return DeploymentFacts(
            row=entry.row,
            status=_status(entry, update),
            revision=active[0] if active else entry.revisions[-1],
            update=update,
            update_deadline=deadline,
            expected=self.expected,
            refused=self.refused,
            enclaves=tuple(entry.enclaves.values()),
            stale_secrets=self._stale(entry),
            rollback=tuple(
                RollbackOption(
                    revision=one.number,
                    tag=one.tag,
                    feasibility=Feasibility.COLD,
                    default=one.number == (entry.row.active_revision or 0) - 1,
                )
                for one in reversed(entry.revisions)
                if one.number < (entry.row.active_revision or 0)
            ),
            next_update=self._next(entry),
        )

    def _note(self, draft: EventDraft) -> None:
        last = self._events[-1] if self._events else None
        at = self.clock.now().wall.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
        self._events.append(
            chain(
                draft,
                sequence=last.sequence + 1 if last else 1,
                at=at,
                previous=last.hash if last else GENESIS,
            )
        )


def _status(entry: _Entry, update: Update | None) -> DeploymentStatus:
    if entry.row.wish is Wish.STOP:
        return DeploymentStatus.STOPPED
    if update is not None and update.running:
        served = entry.row.active_revision is not None
        return DeploymentStatus.UPDATING if served else DeploymentStatus.DEPLOYING
    return DeploymentStatus.RUNNING if entry.enclaves else DeploymentStatus.FAILED


def _health(row: Enclave, booted: bool) -> HealthView:
    done = len(STAGES) if booted else 3
    stages = [
        {"name": name, "status": "ok" if n < done else "pending", "duration_ns": 1_000_000}
        for n, name in enumerate(STAGES)
    ]
    return HealthView(
        launch_uuid=row.launch_uuid,
        answered=True,
        boot_stages={"stages": stages, "started_at": "2026-01-01T00:00:00Z"},
        boot_complete=booted,
        healthy=True if booted else None,
        probes=(
            ProbeView(name="http", passing=2 if booted else 0, needed=2, failing=0, last="200"),
            ProbeView(name="containers", passing=1, needed=2, failing=0, last=None),
        ),
        metrics={"cpu_util": 0.25, "cpu_type": "EPYC"} if booted else None,
    )
