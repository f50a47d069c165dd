"""The store in memory: the reference that the durable one is compared with, and for simulation.

A transaction works on a copy of the whole state that replaces it at the end, so that all or
nothing holds by construction. Nothing survives the process.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Self, TypeVar

from agent.model.clock import Instant, oldest_first
from agent.model.enclave import Enclave
from agent.model.event import GENESIS, Event, EventDraft, chain
from agent.model.gpu import KnownGpu
from agent.model.identity import Identity
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId, UpdateId
from agent.model.lease import Claim, ClaimKind, Lease, Sample
from agent.model.preparation import GpuCondition
from agent.model.revision import Deployment, Revision
from agent.model.update import Update
from agent.store.port import ClaimTakenError, K, KeptAnswer, Reader, StoreError, Transaction
from agent.store.retention import (
    EVENTS_KEPT,
    SAMPLES_KEPT,
    UPDATES_KEPT,
    answers_expired_before,
    event_time,
    superfluous_digests,
    superfluous_revisions,
)
from agent.store.rows import decode, encode

T = TypeVar("T")


@dataclass(slots=True)
class _State:
    """Rows are kept as bytes, so that nobody can change one that he was given."""

    deployments: dict[str, bytes] = field(default_factory=dict)
    revisions: dict[tuple[str, int], bytes] = field(default_factory=dict)
    updates: dict[str, bytes] = field(default_factory=dict)  # in order of creation
    enclaves: dict[str, bytes] = field(default_factory=dict)
    claims: dict[tuple[str, str], str] = field(default_factory=dict)
    leases: dict[str, bytes] = field(default_factory=dict)
    gpu_conditions: dict[str, bytes] = field(default_factory=dict)
    known_gpus: dict[str, bytes] = field(default_factory=dict)
    identities: dict[tuple[str, str], bytes] = field(default_factory=dict)
    secrets: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    digests: dict[tuple[str, str, int], str] = field(default_factory=dict)
    samples: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    events: dict[int, bytes] = field(default_factory=dict)
    answers: dict[tuple[str, str, str, str], tuple[float, bytes]] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)
    checkpoint: tuple[int, str] = (0, GENESIS)

    def copy(self) -> Self:
        """Independent of this one."""
        twin = copy(self)
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, dict):
                setattr(twin, part.name, dict(value))
        return twin


class _MemoryReader:
    def __init__(self, state: _State, now: Callable[[], Instant]) -> None:
        self._state = state
        self._now = now

    def deployments(self) -> list[Deployment]:
        return [decode(body, Deployment) for _, body in sorted(self._state.deployments.items())]

    def deployment(self, name: DeploymentName) -> Deployment | None:
        body = self._state.deployments.get(name)
        return decode(body, Deployment) if body else None

    def revision(self, name: DeploymentName, number: int) -> Revision | None:
        body = self._state.revisions.get((name, number))
        return decode(body, Revision) if body else None

    def revisions(self, name: DeploymentName) -> list[Revision]:
        rows = sorted(self._state.revisions.items(), reverse=True)
        return [decode(body, Revision) for (owner, _), body in rows if owner == name]

    def update(self, update_id: UpdateId) -> Update | None:
        body = self._state.updates.get(update_id)
        return decode(body, Update) if body else None

    def updates(self, name: DeploymentName, limit: int = 50) -> list[Update]:
        rows = [decode(body, Update) for body in reversed(self._state.updates.values())]
        return [row for row in rows if row.deployment == name][:limit]

    def running_update(self, name: DeploymentName) -> Update | None:
        rows = self.updates(name, limit=len(self._state.updates))
        return next((row for row in rows if row.running), None)

    def enclaves(self, name: DeploymentName | None = None) -> list[Enclave]:
        rows = [decode(body, Enclave) for body in self._state.enclaves.values()]
        wanted = [row for row in rows if name is None or row.deployment == name]
        return oldest_first(wanted)

    def enclave(self, enclave_id: EnclaveId) -> Enclave | None:
        body = self._state.enclaves.get(enclave_id)
        return decode(body, Enclave) if body else None

    def claims(self) -> list[Claim]:
        rows = sorted(self._state.claims.items())
        return [Claim(kind=kind, key=key, holder=holder) for (kind, key), holder in rows]

    def leases(self) -> list[Lease]:
        rows = [decode(body, Lease) for body in self._state.leases.values()]
        return oldest_first(rows)

    def gpu_conditions(self) -> list[GpuCondition]:
        rows = sorted(self._state.gpu_conditions.items())
        return [decode(body, GpuCondition) for _, body in rows]

    def known_gpus(self) -> list[KnownGpu]:
        return [decode(body, KnownGpu) for _, body in sorted(self._state.known_gpus.items())]

    def identities(self, kind: type[K]) -> list[K]:
        rows = sorted(self._state.identities.items())
        return [decode(body, kind) for (name, _), body in rows if name == kind.__name__]

    def secret_versions(self, name: DeploymentName) -> dict[str, tuple[int, str]]:
        rows = self._state.secrets.items()
        return {secret: version for (owner, secret), version in rows if owner == name}

    def secret_digests(self, name: DeploymentName) -> dict[tuple[str, int], str]:
        rows = self._state.digests.items()
        return {(secret, number): said for (owner, secret, number), said in rows if owner == name}

    def samples(self, kind: str, key: str, limit: int = 50) -> list[float]:
        return list(self._state.samples.get((kind, key), ())[:limit])

    def events(self, after: int, limit: int = 1000) -> list[Event]:
        wanted = sorted(sequence for sequence in self._state.events if sequence > after)[:limit]
        return [decode(self._state.events[sequence], Event) for sequence in wanted]

    def event_bounds(self) -> tuple[int, int]:
        pruned = self._state.checkpoint[0]
        return pruned + 1, next(reversed(self._state.events), pruned)

    def event_count(self, after: int) -> int:
        return sum(sequence > after for sequence in self._state.events)

    def sequence_before_newest(self, count: int) -> int:
        newest = sorted(self._state.events, reverse=True)
        return newest[count] if count < len(newest) else self._state.checkpoint[0]

    def checkpoint(self) -> tuple[int, str]:
        return self._state.checkpoint

    def answer(self, caller: str, method: str, path: str, key: str) -> KeptAnswer | None:
        kept = self._state.answers.get((caller, method, path, key))
        if kept is None or kept[0] < answers_expired_before(self._now().wall):
            return None
        return decode(kept[1], KeptAnswer)

    def meta(self, key: str) -> str | None:
        return self._state.meta.get(key)


class _MemoryTransaction(_MemoryReader):
    def __init__(self, state: _State, now: Callable[[], Instant], events_kept: int) -> None:
        super().__init__(state, now)
        self._events_kept = events_kept

    def put_deployment(self, row: Deployment) -> None:
        self._state.deployments[row.name] = encode(row)

    def delete_deployment(self, name: DeploymentName) -> None:
        if self.enclaves(name):
            raise StoreError(f"enclaves of {name} are still there")
        state = self._state
        state.deployments.pop(name, None)
        for revision in self.revisions(name):
            del state.revisions[name, revision.number]
        for update in self.updates(name, limit=len(state.updates)):
            del state.updates[update.id]
        for secret in self.secret_versions(name):
            del state.secrets[name, secret]
        for secret, version in self.secret_digests(name):
            del state.digests[name, secret, version]
        self.release_claims(name, ClaimKind.LISTEN)

    def put_revision(self, row: Revision) -> None:
        self._state.revisions[row.deployment, row.number] = encode(row)
        for number in superfluous_revisions(self, row.deployment, row.number):
            del self._state.revisions[row.deployment, number]
        self._forget_digests(row.deployment)

    def put_update(self, row: Update) -> None:
        self._state.updates[row.id] = encode(row)
        for old in self.updates(row.deployment, limit=len(self._state.updates))[UPDATES_KEPT:]:
            if not old.running:
                del self._state.updates[old.id]

    def put_enclave(self, row: Enclave) -> None:
        self._state.enclaves[row.id] = encode(row)

    def delete_enclave(self, enclave_id: EnclaveId) -> None:
        self._state.enclaves.pop(enclave_id, None)
        for claim in self.claims():
            if claim.holder == enclave_id and claim.kind != ClaimKind.LISTEN:
                del self._state.claims[claim.kind, claim.key]

    def claim(self, claim: Claim) -> None:
        holder = self._state.claims.setdefault((claim.kind, claim.key), claim.holder)
        if holder != claim.holder:
            raise ClaimTakenError(claim, holder)

    def release_claims(self, holder: str, kind: str | None = None) -> None:
        for claim in self.claims():
            if claim.holder == holder and kind in (None, claim.kind):
                del self._state.claims[claim.kind, claim.key]

    def put_lease(self, row: Lease) -> None:
        self._state.leases[row.id] = encode(row)

    def delete_lease(self, lease_id: LeaseId) -> None:
        self._state.leases.pop(lease_id, None)

    def put_gpu_condition(self, row: GpuCondition) -> None:
        self._state.gpu_conditions[row.bdf] = encode(row)

    def delete_gpu_condition(self, bdf: Bdf) -> None:
        self._state.gpu_conditions.pop(bdf, None)

    def put_known_gpu(self, row: KnownGpu) -> None:
        self._state.known_gpus[row.key] = encode(row)

    def delete_known_gpu(self, key: str) -> None:
        self._state.known_gpus.pop(key, None)

    def put_identity(self, row: Identity) -> None:
        self._state.identities[type(row).__name__, row.key] = encode(row)

    def delete_identity(self, row: Identity) -> None:
        self._state.identities.pop((type(row).__name__, row.key), None)

    def put_secret_version(
        self, name: DeploymentName, secret: str, version: int, digest: str
    ) -> None:
        self._state.secrets[name, secret] = (version, digest)
        self._state.digests[name, secret, version] = digest
        self._forget_digests(name)

    def delete_secret(self, name: DeploymentName, secret: str) -> None:
        self._state.secrets.pop((name, secret), None)
        self._forget_digests(name)

    def _forget_digests(self, name: DeploymentName) -> None:
        for secret, version in superfluous_digests(self, name):
            del self._state.digests[name, secret, version]

    def add_sample(self, sample: Sample) -> None:
        place = (sample.kind, sample.key)
        kept = self._state.samples.get(place, ())
        self._state.samples[place] = (sample.value_s, *kept)[:SAMPLES_KEPT]

    def append(self, draft: EventDraft, *, after: int = 0) -> Event:
        _, newest = self.event_bounds()
        previous = self._state.events.get(newest)
        event = chain(
            draft,
            sequence=max(newest, after) + 1,
            at=event_time(self._now().wall),
            previous=decode(previous, Event).hash if previous else self._state.checkpoint[1],
        )
        self._state.events[event.sequence] = encode(event)
        self._prune(event.sequence - self._events_kept)
        return event

    def _prune(self, last: int) -> None:
        if last not in self._state.events:
            return  # not so many yet, or in a gap: those before it go when it is over
        for sequence in sorted(kept for kept in self._state.events if kept <= last):
            pruned = decode(self._state.events.pop(sequence), Event)
            self._state.checkpoint = (sequence, pruned.hash)

    def put_answer(
        self, caller: str, method: str, path: str, key: str, answer: KeptAnswer
    ) -> None:
        wall = self._now().wall
        expired = answers_expired_before(wall)
        for place, (kept_at, _) in list(self._state.answers.items()):
            if kept_at < expired:
                del self._state.answers[place]
        self._state.answers[caller, method, path, key] = (wall.timestamp(), encode(answer))

    def set_meta(self, key: str, value: str) -> None:
        self._state.meta[key] = value

    def check_owners(self) -> None:
        """Raise StoreError if something belongs to a deployment that is not there."""
        owners = {owner for owner, _ in (*self._state.revisions, *self._state.secrets)}
        owners |= {row.deployment for row in self.enclaves()}
        owners |= {decode(body, Update).deployment for body in self._state.updates.values()}
        if strays := sorted(owners - set(self._state.deployments)):
            raise StoreError(f"something belongs to {strays[0]}, which is not in the store")


class MemoryStore:
    """Implements `agent.store.port.Store`. Callbacks run on the event loop itself."""

    def __init__(self, now: Callable[[], Instant], *, events_kept: int = EVENTS_KEPT) -> None:
        self._now = now
        self._events_kept = events_kept
        self._state = _State()
        self._closed = False

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Run `work` on the present state."""
        self._check_open()
        return work(_MemoryReader(self._state, self._now))

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` on a copy, which becomes the state if it returns."""
        self._check_open()
        state = self._state.copy()
        transaction = _MemoryTransaction(state, self._now, self._events_kept)
        result = work(transaction)
        transaction.check_owners()
        self._state = state
        return result

    async def close(self) -> None:
        """Forget everything."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")
