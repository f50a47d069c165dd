"""The store: everything that must survive a crash, behind one port.

Invariants of every implementation: a `transact` callback is all or nothing and sees no other
writer, in this process or another (so two admissions cannot both take the last slot); when
`transact` returns, what it wrote survives a power cut; rows come back equal to what was put.
Callbacks are synchronous, quick and free of side effects: they may be run off the event loop, and
what they raise comes out of `read` or `transact` unchanged. When an awaiter is cancelled, the
transaction is over (done, or never begun) by the time that the cancellation is felt. Revisions,
updates, enclaves and secret versions belong to a deployment that must be there when the
transaction ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from agent.errors import AgentError
from agent.model.enclave import Enclave
from agent.model.event import Event, EventDraft
from agent.model.gpu import KnownGpu
from agent.model.identity import Identity
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId, UpdateId
from agent.model.lease import Claim, Lease, Sample
from agent.model.preparation import GpuCondition
from agent.model.revision import Deployment, Revision
from agent.model.update import Update

T = TypeVar("T")
K = TypeVar("K", bound=Identity)


class StoreError(AgentError):
    """The store could not read or write; nothing of the transaction took effect."""

    @property
    def code(self) -> str:
        return "store_unavailable"


class StoreFullError(StoreError):
    """No space left on the device that holds the store."""

    @property
    def code(self) -> str:
        return "disk_full"


class StoreReadOnlyError(StoreError):
    """The file system that holds the store takes no writes."""

    @property
    def code(self) -> str:
        return "disk_read_only"


class StoreVersionError(StoreError):
    """The file was written by a newer agent, or is a database of something else."""


REPORT_NUMBERS = "link_report_numbers"  # of the meta table: the first that was not handed out
MEND_DAMAGE = "stop the agent, run `enclave-agent restore-store`, start it (docs/operations.md)"


class StoreDamagedError(StoreError):
    """What is in the file cannot be trusted: nothing may be decided on it any more."""

    @property
    def code(self) -> str:
        return "store_damaged"


class ClaimTakenError(StoreError):
    """Somebody else holds it. Carries the claim that is in force."""

    def __init__(self, wanted: Claim, holder: str) -> None:
        super().__init__(f"{wanted.kind} {wanted.key} is held by {holder}")
        self.wanted = wanted
        self.holder = holder


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kept answer of an idempotent request."""

    body_digest: str
    status: int
    body: bytes


class Reader(Protocol):
    """What a transaction can read."""

    def deployments(self) -> list[Deployment]:
        """Sorted by name."""
        ...

    def deployment(self, name: DeploymentName) -> Deployment | None: ...

    def revision(self, name: DeploymentName, number: int) -> Revision | None: ...

    def revisions(self, name: DeploymentName) -> list[Revision]:
        """Newest first."""
        ...

    def update(self, update_id: UpdateId) -> Update | None: ...

    def updates(self, name: DeploymentName, limit: int = 50) -> list[Update]:
        """Newest first."""
        ...

    def running_update(self, name: DeploymentName) -> Update | None:
        """The one that is not finished, if any."""
        ...

    def enclaves(self, name: DeploymentName | None = None) -> list[Enclave]:
        """All, or one deployment's; sorted by creation, then id."""
        ...

    def enclave(self, enclave_id: EnclaveId) -> Enclave | None: ...

    def claims(self) -> list[Claim]: ...

    def leases(self) -> list[Lease]: ...

    def gpu_conditions(self) -> list[GpuCondition]:
        """Sorted by BDF."""
        ...

    def known_gpus(self) -> list[KnownGpu]:
        """What is remembered of GPUs and switches, sorted by key."""
        ...

    def identities(self, kind: type[K]) -> list[K]:
        """What was learned of this kind from evidence, sorted by key."""
        ...

    def secret_versions(self, name: DeploymentName) -> dict[str, tuple[int, str]]:
        """Secret name → (current version, keyed digest in hex)."""
        ...

    def secret_digests(self, name: DeploymentName) -> dict[tuple[str, int], str]:
        """(Secret name, version) → keyed digest in hex."""
        ...

    def samples(self, kind: str, key: str, limit: int = 50) -> list[float]:
        """Newest first, seconds."""
        ...

    def events(self, after: int, limit: int = 1000) -> list[Event]:
        """In order; those with a sequence above `after`."""
        ...

    def event_bounds(self) -> tuple[int, int]:
        """(oldest kept sequence, newest sequence); (1, 0) when there was never one."""
        ...

    def event_count(self, after: int) -> int:
        """How many are kept with a sequence above `after`: fewer than the numbers over a gap."""
        ...

    def sequence_before_newest(self, count: int) -> int:
        """The sequence after which the newest `count` events come; more than are kept: all."""
        ...

    def checkpoint(self) -> tuple[int, str]:
        """(sequence, hash) of the last pruned event, (0, 64 zeros) when nothing was pruned."""
        ...

    def answer(self, caller: str, method: str, path: str, key: str) -> KeptAnswer | None:
        """A kept answer of an idempotent request, if it has not expired."""
        ...

    def meta(self, key: str) -> str | None: ...


class Transaction(Reader, Protocol):
    """What a transaction can write. `put_*` inserts or replaces by id."""

    def put_deployment(self, row: Deployment) -> None: ...

    def delete_deployment(self, name: DeploymentName) -> None:
        """With its revisions, updates, secret versions and claims.

        Raises StoreError while an enclave of it is there.
        """
        ...

    def put_revision(self, row: Revision) -> None:
        """Keeps the newest 20 of the deployment, and those that something present refers to."""
        ...

    def put_update(self, row: Update) -> None:
        """Keeps the newest 100 of the deployment."""
        ...

    def put_enclave(self, row: Enclave) -> None: ...

    def delete_enclave(self, enclave_id: EnclaveId) -> None:
        """With its claims."""
        ...

    def claim(self, claim: Claim) -> None:
        """Raises ClaimTakenError if another holder has it; a holder's own again is fine."""
        ...

    def release_claims(self, holder: str, kind: str | None = None) -> None: ...

    def put_lease(self, row: Lease) -> None: ...

    def delete_lease(self, lease_id: LeaseId) -> None: ...

    def put_gpu_condition(self, row: GpuCondition) -> None: ...

    def delete_gpu_condition(self, bdf: Bdf) -> None: ...

    def put_known_gpu(self, row: KnownGpu) -> None: ...

    def delete_known_gpu(self, key: str) -> None: ...

    def put_identity(self, row: Identity) -> None: ...

    def delete_identity(self, row: Identity) -> None: ...

    def put_secret_version(
        self, name: DeploymentName, secret: str, version: int, digest: str
    ) -> None:
        """Make it the current one. Keeps the digests of those that a revision names."""
        ...

    def delete_secret(self, name: DeploymentName, secret: str) -> None:
        """There is no current one any more."""
        ...

    def add_sample(self, sample: Sample) -> None:
        """Keeps the newest 200 of each (kind, key)."""
        ...

    def append(self, draft: EventDraft, *, after: int = 0) -> Event:
        """Chain an event; prunes beyond the kept number, leaving a checkpoint.

        Its sequence follows the newest one, or `after` if that is higher: a gap, which is for
        `model.event.STORE_RESTORED` alone.
        """
        ...

    def put_answer(
        self, caller: str, method: str, path: str, key: str, answer: KeptAnswer
    ) -> None: ...

    def set_meta(self, key: str, value: str) -> None: ...


class Store(Protocol):
    """The store."""

    async def read(self, work: Callable[[Reader], T]) -> T:
        """Run `work` on one consistent state."""
        ...

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work`; commit durably if it returns, undo all of it if it raises."""
        ...

    async def close(self) -> None: ...
