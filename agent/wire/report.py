"""What goes between the agent and its coordinator: reports, enrolment, and their answers.

What we send says everything; what we are answered may say more than we know, never less.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from agent.model.event import Event
from agent.model.revision import DeploymentStatus
from agent.wire.gpu_views import InventoryView
from agent.wire.host_views import FreeAndTotal
from agent.wire.views import DecisionView, UpdateView

PROTOCOL = 1
_Whole = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class _Sent(Struct, frozen=True, kw_only=True):
    """Base of what is sent."""


class ReportedHost(_Sent, frozen=True, kw_only=True):
    """Who reports. `rpc_url`: where its RPC is reached; null while it is off or not known."""

    id: str
    agent_version: str
    tee: str
    rpc_url: str | None
    boot_id: str


class ReportedDeployment(_Sent, frozen=True, kw_only=True):
    """One deployment. `next_update` is true for it alone; only a lease reserves."""

    name: str
    status: DeploymentStatus
    tag: str | None
    revision: int | None
    update: UpdateView | None
    next_update: DecisionView


class ReportedState(_Sent, frozen=True, kw_only=True):
    """What is true at this moment."""

    capacity: FreeAndTotal
    deployments: list[ReportedDeployment]


class Report(_Sent, frozen=True, kw_only=True):
    """The whole state. `sequence` numbers the reports of a host, across restarts too.

    `events` are the oldest that were not acknowledged, in order. `inventory_digest` is null before
    the first look at the host. `inventory` is there when its
    digest is another than in the last report that was answered, and when it was asked for.
    """

    protocol: int
    host: ReportedHost
    sequence: int
    inventory_digest: str | None
    inventory: InventoryView | UnsetType = UNSET
    capacity: FreeAndTotal
    deployments: list[ReportedDeployment]
    events: list[Event]


class WantedTag(Struct, frozen=True, kw_only=True):
    """A release that will be asked for: its artifacts are fetched beforehand."""

    repo: str
    tag: str


class ReportAnswer(Struct, frozen=True, kw_only=True):
    """`events_acknowledged`: the highest sequence that is durable with the coordinator."""

    session_ttl_s: Annotated[float, Meta(gt=0, le=86400)]
    epoch: _Whole
    events_acknowledged: _Whole
    wanted_tags: Annotated[list[WantedTag], Meta(max_length=256)] = []
    send_inventory: bool = False


class EnrolRequest(_Sent, frozen=True, kw_only=True):
    """The token is shown only to the coordinator, and never printed."""

    token: str
    csr_pem: str
    host: ReportedHost

    def __repr__(self) -> str:
        return f"EnrolRequest({self.host.id})"


class RenewRequest(_Sent, frozen=True, kw_only=True):
    """Sent with the certificate that is to be renewed."""

    csr_pem: str


class EnrolAnswer(Struct, frozen=True, kw_only=True):
    """A certificate for the key of the request, and what the fleet trusts."""

    certificate_pem: str
    ca_pem: str
    trust_domain: str
    crl_pem: str | None = None
