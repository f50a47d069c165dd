"""What a client may send. Strict: an unknown field is refused, and every error names its field.

Structs say the shape; `agent.api.validation` checks the values and makes the engine's requests.
A struct that can hold secrets' values shows only its type when printed.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from agent.model.reasons import Strategy
from agent.wire.text import (
    MAX_COUNT,
    MAX_NAMES,
    MAX_PUBLISH,
    Count,
    DeploymentText,
    DomainText,
    LeaseText,
    ListenText,
    Port,
    ProbeHostText,
    ProbePathText,
    RepoText,
    SecretText,
    TagText,
    ValueText,
    VariableName,
)

_MANY = Meta(extra_json_schema={"maxProperties": MAX_NAMES})

Values = Annotated[dict[VariableName, ValueText], _MANY]
NameList = Annotated[tuple[VariableName, ...], Meta(max_length=MAX_NAMES)]
ValueChanges = Annotated[dict[VariableName, ValueText | None], _MANY]
Secrets = Annotated[dict[VariableName, SecretText], _MANY]
SecretChanges = Annotated[dict[VariableName, SecretText | None], _MANY]


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the requests."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class PublishRequest(_Request, frozen=True, kw_only=True):
    """One more listener of the host, for a port of the guest other than 443."""

    listen: ListenText
    guest_port: Port


PublishList = Annotated[tuple[PublishRequest, ...], Meta(max_length=MAX_PUBLISH)]


class ProbesRequest(_Request, frozen=True, kw_only=True):
    """How the workload is asked whether it lives: where, and by which name of the host.

    Without a path the one that the release's shim makes best is asked; without a host the
    deployment's domain.
    """

    path: ProbePathText | None = None
    host: ProbeHostText | None = None


class ProbesChange(_Request, frozen=True, kw_only=True):
    """Another way to ask the workload. What is absent keeps what is; null removes it."""

    path: ProbePathText | UnsetType | None = UNSET
    host: ProbeHostText | UnsetType | None = UNSET


class DeployRequest(_Request, frozen=True, kw_only=True):
    """Create a deployment. `repo` defaults to the deployment's name."""

    tag: TagText
    listen: ListenText
    publish: PublishList = ()
    repo: RepoText | None = None
    domain: DomainText | None = None
    probes: ProbesRequest | None = None
    variables: Values = {}
    secrets: Secrets = {}
    staging: bool = False
    lease: LeaseText | None = None


class UpdateRequest(_Request, frozen=True, kw_only=True):
    """Update a deployment. A field that is absent keeps what is; null removes it.

    Without `tag` the contents stay, byte for byte. With it, contents that are others than those
    that were taken under this tag before are refused, unless `accept_moved_tag`. `debug`: true for
    the debug variant of the tag (the tag with `-debug` behind it), false for the tag itself.
    """

    tag: TagText | UnsetType = UNSET
    listen: ListenText | UnsetType = UNSET
    publish: PublishList | UnsetType | None = UNSET
    domain: DomainText | UnsetType | None = UNSET
    probes: ProbesChange | UnsetType | None = UNSET
    variables: ValueChanges | UnsetType | None = UNSET
    secrets: SecretChanges | UnsetType | None = UNSET
    staging: bool = False
    strategy: Strategy | UnsetType = UNSET
    revert_after_switch: bool | UnsetType = UNSET
    restart_old_on_failure: bool = False
    accept_moved_tag: bool | UnsetType = UNSET
    debug: bool | UnsetType = UNSET
    lease: LeaseText | None = None


class RollbackRequest(_Request, frozen=True, kw_only=True):
    """Roll back to a tag (text) or a revision (number); absent: to the one before."""

    to: TagText | Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None


class DemandRequest(_Request, frozen=True, kw_only=True):
    """What one enclave would take from the host."""

    gpus: Annotated[int, Meta(ge=0, le=64)] = 0
    memory_mib: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    vcpus: Annotated[int, Meta(ge=1, le=65536)]
    disk_mib: Count = 0


class PlanRequest(_Request, frozen=True, kw_only=True):
    """A dry run: of a deployment's update, or of a bare demand. One of the two is needed.

    `variables` and `secrets` are the names of those that the update would be given, beside those
    that the deployment has; `unset_variables` and `unset_secrets` of those that it would lose.
    Values have no place here. The rest is as in an update.
    """

    deployment: DeploymentText | UnsetType = UNSET
    tag: TagText | UnsetType = UNSET
    demand: DemandRequest | UnsetType = UNSET
    strategy: Strategy | UnsetType = UNSET
    staging: bool = False
    accept_moved_tag: bool | UnsetType = UNSET
    debug: bool | UnsetType = UNSET
    variables: NameList | UnsetType = UNSET
    secrets: NameList | UnsetType = UNSET
    unset_variables: NameList | UnsetType = UNSET
    unset_secrets: NameList | UnsetType = UNSET
    listen: ListenText | UnsetType = UNSET
    publish: PublishList | UnsetType | None = UNSET
    domain: DomainText | UnsetType | None = UNSET
    probes: ProbesChange | UnsetType | None = UNSET


class PruneRequest(_Request, frozen=True, kw_only=True):
    """Only what nobody used for so long."""

    unused_for_s: Annotated[int, Meta(ge=0, le=10 * 365 * 86400)]


class LeaseRequest(_Request, frozen=True, kw_only=True):
    """Reserve what an update would take, until a time."""

    deployment: DeploymentText | UnsetType = UNSET
    tag: TagText | UnsetType = UNSET
    demand: DemandRequest | UnsetType = UNSET
    strategy: Strategy | UnsetType = UNSET
    ttl_s: Annotated[int, Meta(ge=1, le=86400)]


class EmptyRequest(_Request, frozen=True, kw_only=True):
    """Nothing to say: an empty body, or an empty object."""
