"""The data plane: who takes a deployment's new connections.

Invariants of every implementation: `apply` is atomic for one deployment (a connection sees either
the old or the new target, never none); established connections stay with the endpoint that they
began with; a deployment whose bindings have no endpoints refuses at once; an `apply` of an older
generation than the one in force is refused; what others put into the kernel or the machine is not
touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from agent.errors import AgentError
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen


class TrafficError(AgentError):
    """The data plane did not take an order. The order may be given again."""

    @property
    def code(self) -> str:
        return "traffic_unavailable"


class StaleGenerationError(TrafficError):
    """An order older than the one in force."""


class PortTakenError(TrafficError):
    """Another process has a port. `program`: who listens there; None: nobody does."""

    def __init__(self, detail: str, listen: Listen, program: str | None = None) -> None:
        super().__init__(f"{detail}: {program}" if program else detail)
        self.listen = listen
        self.program = program


class Binding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host listener and the endpoints behind it; none means: refuse at once."""

    listen: Listen
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Unheld:
    """A port that could not be bound. `program`: who listens there; None: nobody does."""

    why: str
    program: str | None = None


class RouteOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All listeners of one deployment, with the generation of the decision behind them."""

    deployment: DeploymentName
    generation: int
    bindings: tuple[Binding, ...]
    domain: str | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Who was refused a connection because of a tenant's limit (`limits` in the configuration).

    `counts`: tenant → limit → how many, since the data plane began to count. A tenant is a
    deployment's name or, where the kernel counts, a guest's address; a limit is the name of its
    key. `unlimited`: why there are no limits in force, or None.
    """

    counts: Mapping[str, Mapping[str, int]] = {}
    unlimited: str | None = None


class Traffic(Protocol):
    """A data plane."""

    kind: str  # "nftables", "haproxy" or "userspace", for /status

    async def start(self) -> None:
        """Become ready; leave what an earlier run of the agent put in force as it is."""
        ...

    async def apply(self, order: RouteOrder) -> None:
        """Put one deployment's routes in force, in one transaction. Idempotent.

        Raises TrafficError when nothing was changed (a listener that is taken, say).
        """
        ...

    async def remove(self, deployment: DeploymentName) -> None:
        """Forget a deployment. Idempotent."""
        ...

    async def observe(self) -> Mapping[DeploymentName, RouteOrder]:
        """What is in force, read from the data plane itself and not from memory."""
        ...

    async def connections(self, endpoint: Endpoint) -> int:
        """Established connections that came through the data plane to this endpoint."""
        ...

    async def reset(self, endpoint: Endpoint) -> int:
        """End every such connection; returns how many were reset (TCP RST to the client).

        Where the data plane can tell that nothing is under way (the guest has hung up, or both
        have been silent for a moment and the client does not wait for an answer), it is closed in
        order instead. nftables can only reset; what the guest had closed is not counted.
        """
        ...

    async def hold_ports(self) -> Mapping[Listen, Unheld]:
        """Keep the listeners in force from other programs. Idempotent; to be asked now and then.

        Returns those whose port another program has, or could have. Raises TrafficError.
        """
        ...

    async def refused(self) -> Refused:
        """What tenants' limits have refused. Raises TrafficError."""
        ...

    def refusal(self, listen: Listen) -> str | None:
        """Why this backend cannot serve such a listener (IPv6 on nftables), or None. Pure."""
        ...

    async def close(self) -> None:
        """Let go of handles. What is in force stays in force."""
        ...
