"""What the surfaces (local API, RPC) may ask of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent.attestation.port import Evidence
from agent.host.wake import Wake
from agent.inventory.port import Gpus
from agent.model.ended_console import EndedConsole
from agent.model.event import Event
from agent.model.ids import DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import Decision
from agent.model.update import Update
from agent.releases.port import KeptImage
from agent.updates.admission.gpus import Preparation
from agent.updates.orders import (
    Caller,
    Change,
    ChipChange,
    NewDeployment,
    NewLease,
    PlanQuestion,
)
from agent.updates.secrets.standing import SecretState
from agent.updates.snapshot.snapshot import Snapshot


class Leases(Protocol):
    """Promises of capacity."""

    async def grant(self, wanted: NewLease, caller: Caller) -> Lease:
        """Raises RefusedError, FieldError, ConflictError, UnknownNameError."""
        ...

    async def get(self, lease_id: LeaseId) -> Lease:
        """Raises UnknownNameError; LeaseExpiredError for one whose time is up."""
        ...

    async def give_back(self, lease_id: LeaseId, caller: Caller) -> None:
        """Raises as `get` does."""
        ...

    async def made_by(self, matches: Callable[[str | None], bool]) -> Lease | None:
        """The lease that a marked request made, if it is still there."""
        ...


class Engine(Protocol):
    """The engine. Every method that changes something returns only when it is durable."""

    changed: Wake  # rung whenever a new snapshot is published

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def leases(self) -> Leases: ...

    @property
    def gpus(self) -> Gpus: ...

    @property
    def preparation(self) -> Preparation: ...

    async def deploy(self, request: NewDeployment, caller: Caller) -> Update:
        """Create. Raises ConflictError `exists`, RefusedError, FieldError."""
        ...

    async def update(self, name: DeploymentName, change: Change, caller: Caller) -> Update:
        """Without a tag the recorded contents stay, and the source is not asked.

        Raises RefusedError (`tag_moved`: see `Change`), FieldError, ConflictError (`cancelled`
        and AbandonedError: before it was admitted), ReleaseSourceError.
        """
        ...

    async def rollback(
        self, name: DeploymentName, to: str | int | None, caller: Caller
    ) -> Update: ...

    async def accept(self, name: DeploymentName, caller: Caller) -> Update: ...

    async def cancel(self, name: DeploymentName, caller: Caller) -> Update | None:
        """The running update, and requests that wait to be admitted; None: only such ones."""
        ...

    async def retry(self, name: DeploymentName, caller: Caller) -> Update: ...

    async def start(self, name: DeploymentName, caller: Caller) -> Update:
        """Of a stopped deployment: an update to its active revision."""
        ...

    async def stop(self, name: DeploymentName, caller: Caller) -> None: ...

    async def delete(self, name: DeploymentName, caller: Caller) -> None: ...

    async def set_secrets(
        self, name: DeploymentName, values: Mapping[str, str | None], caller: Caller
    ) -> tuple[str, ...]:
        """Record new values without restarting anything; returns the stale secrets' names."""
        ...

    async def secrets(self, name: DeploymentName) -> tuple[SecretState, ...]:
        """How each secret stands, by name. Raises UnknownNameError."""
        ...

    async def plan(self, question: PlanQuestion) -> Decision: ...

    async def drain(self, caller: Caller) -> None: ...

    async def undrain(self, caller: Caller) -> None: ...

    async def see_epoch(self, caller: Caller) -> None:
        """Take note of a coordinator's epoch. Raises StaleEpochError if a higher one was seen."""
        ...

    async def reset_epoch(self, caller: Caller) -> int:
        """Forget the highest epoch; returns what it was."""
        ...

    async def updates(self, name: DeploymentName) -> list[Update]:
        """Newest first."""
        ...

    async def events(self, after: int, limit: int = 1000) -> Sequence[Event]:
        """Raises PrunedError when `after` is older than what is kept."""
        ...

    async def evidence(self, enclave_id: EnclaveId, nonce: bytes | None) -> Evidence:
        """Over this nonce, or the newest over one of ours.

        Raises UnknownNameError, NotYetError, NothingClaimedError, ReleaseError.
        """
        ...

    async def accept_chip(self, name: DeploymentName, caller: Caller) -> ChipChange:
        """Have the processor that this deployment's newest evidence names be this machine's.

        Raises UnknownNameError, NothingClaimedError, and ChipNotAcceptedError where that evidence
        was not refused for its processor alone.
        """
        ...

    async def images(self) -> Sequence[KeptImage]:
        """What is kept of releases. Raises StorageError."""
        ...

    async def prune_images(self, unused_for_s: float) -> Sequence[KeptImage]:
        """Remove what no running and no rollback-able revision needs. Raises StorageError."""
        ...

    async def console(self, enclave_id: EnclaveId, max_bytes: int) -> bytes:
        """The console log's tail, also of an enclave that is gone. Raises UnknownNameError."""
        ...

    async def ended_consoles(self, name: DeploymentName) -> Sequence[EndedConsole]:
        """What is kept of the enclaves of a deployment that are gone, also if it is itself."""
        ...
