"""What the surfaces (local API, RPC) may ask of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from agent.attestation.port import Evidence
from agent.errors import AgentError
from agent.host.wake import Wake
from agent.inventory.port import Gpus
from agent.model.event import Event
from agent.model.ids import DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import Decision, Reason, Strategy
from agent.model.resources import Demand, Listen, Publish
from agent.model.update import Update
from agent.releases.port import KeptImage
from agent.updates.published import Snapshot


class RefusedError(AgentError):
    """An admission said no. `code` is the first reason's."""

    def __init__(self, decision: Decision) -> None:
        super().__init__("; ".join(reason.detail for reason in decision.reasons) or "refused")
        self.decision = decision

    @property
    def code(self) -> str:
        return str(self.decision.reasons[0].code) if self.decision.reasons else "refused"

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return self.decision.reasons


class ConflictError(AgentError):
    """The request does not fit the state that things are in."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self._code = code

    @property
    def code(self) -> str:
        return self._code


class StaleEpochError(ConflictError):
    """The coordinator that asks is one of the past: a later one was seen."""

    def __init__(self, epoch: int, highest: int) -> None:
        super().__init__(
            "stale_epoch",
            f"epoch {epoch} is over: this host has seen {highest}. If the coordinator was "
            "restored from a backup, run on this host: enclave-agent coordinator-epoch reset",
        )
        self.epoch = epoch
        self.highest = highest


class UnknownNameError(AgentError):
    """No deployment, enclave, revision or update of that name."""

    @property
    def code(self) -> str:
        return "not_found"


class LeaseExpiredError(AgentError):
    """The lease was made here, and does not hold any more."""

    @property
    def code(self) -> str:
        return "lease_expired"


class FieldError(AgentError):
    """A well-formed request with an impossible value. `path` is the field's."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path

    @property
    def code(self) -> str:
        return "bad_request"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: `local:<uid>` on the unix socket, a SAN URI over TLS; the coordinator's epoch.

    `request` marks the request, if it has a key: an update that it begins is recorded with it, so
    that the request told again after a crash is known to have been carried out.
    """

    name: str
    epoch: int | None = None
    request: str | None = None


class NewDeployment(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request to create a deployment. Holds secret values: never log it."""

    name: DeploymentName
    repo: str
    tag: str
    listen: Listen
    publish: tuple[Publish, ...] = ()
    domain: str | None = None
    variables: Mapping[str, str] = {}
    secrets: Mapping[str, str] = {}
    staging: bool = False
    lease: str | None = None

    def __repr__(self) -> str:
        return f"NewDeployment({self.name}, tag={self.tag})"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request to update a deployment. UNSET keeps; None in a mapping removes."""

    tag: str | msgspec.UnsetType = msgspec.UNSET
    listen: Listen | msgspec.UnsetType = msgspec.UNSET
    publish: tuple[Publish, ...] | msgspec.UnsetType = msgspec.UNSET
    variables: Mapping[str, str | None] | msgspec.UnsetType | None = msgspec.UNSET
    secrets: Mapping[str, str | None] | msgspec.UnsetType | None = msgspec.UNSET
    staging: bool = False
    strategy: Strategy | None = None
    revert_after_switch: bool | None = None
    restart_old_on_failure: bool = False
    lease: str | None = None

    def __repr__(self) -> str:
        return f"Change(tag={self.tag})"


class PlanQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A dry run: of a deployment's update to a tag, or of a bare demand.

    `variables` and `secrets`: the names of those that the update would be given.
    """

    deployment: DeploymentName | None = None
    tag: str | None = None
    demand: Demand | None = None
    strategy: Strategy | None = None
    staging: bool = False
    variables: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


class NewLease(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request for a promise: of what a deployment's update takes, or a bare demand."""

    deployment: DeploymentName | None = None
    tag: str | None = None
    demand: Demand | None = None
    strategy: Strategy | None = None
    ttl_s: float


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

    async def deploy(self, request: NewDeployment, caller: Caller) -> Update:
        """Create. Raises ConflictError `exists`, RefusedError, FieldError."""
        ...

    async def update(self, name: DeploymentName, change: Change, caller: Caller) -> Update: ...

    async def rollback(
        self, name: DeploymentName, to: str | int | None, caller: Caller
    ) -> Update: ...

    async def accept(self, name: DeploymentName, caller: Caller) -> Update: ...

    async def cancel(self, name: DeploymentName, caller: Caller) -> Update: ...

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

    async def images(self) -> Sequence[KeptImage]:
        """What is kept of releases. Raises StorageError."""
        ...

    async def prune_images(self, unused_for_s: float) -> Sequence[KeptImage]:
        """Remove what no running and no rollback-able revision needs. Raises StorageError."""
        ...

    async def console(self, enclave_id: EnclaveId, max_bytes: int) -> bytes:
        """The console log's tail. Raises UnknownNameError."""
        ...


class PrunedError(AgentError):
    """Those events are gone; `oldest` is the first that is kept."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"events before {oldest} were pruned")
        self.oldest = oldest

    @property
    def code(self) -> str:
        return "pruned"
