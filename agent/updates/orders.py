"""What a request says once every field of it was checked: who asks, and for what."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from agent.model.ids import DeploymentName
from agent.model.reasons import Strategy
from agent.model.resources import Demand, Listen, Publish
from agent.model.revision import ProbeOptions


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: `local:<uid>` on the unix socket, a SAN URI over TLS; the coordinator's epoch.

    `request` marks the request, if it has a key: an update that it begins is recorded with it, so
    that the request told again after a crash is known to have been carried out. `gone` is set once
    nobody waits for the answer any more: what is not admitted by then is dropped.
    """

    name: str
    epoch: int | None = None
    request: str | None = None
    gone: asyncio.Event | None = None


class ChipChange(msgspec.Struct, frozen=True, kw_only=True):
    """Which processor evidence of this machine is to name, and which it was to name before."""

    source: str
    old: str | None
    new: str


class ProbesChange(msgspec.Struct, frozen=True, kw_only=True):
    """Of how the workload is asked: UNSET keeps, None removes."""

    path: str | msgspec.UnsetType | None = msgspec.UNSET
    host: str | msgspec.UnsetType | None = msgspec.UNSET

    def applied(self, before: ProbeOptions) -> ProbeOptions:
        """What it comes to."""
        return ProbeOptions(
            path=before.path if self.path is msgspec.UNSET else self.path,
            host=before.host if self.host is msgspec.UNSET else self.host,
        )


KEEP_PROBES = ProbesChange()


FORGET_PROBES = ProbesChange(path=None, host=None)


class NewDeployment(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request to create a deployment. Holds secret values: never log it."""

    name: DeploymentName
    repo: str
    tag: str
    listen: Listen
    publish: tuple[Publish, ...] = ()
    domain: str | None = None
    probes: ProbeOptions = ProbeOptions()
    variables: Mapping[str, str] = {}
    secrets: Mapping[str, str] = {}
    staging: bool = False
    lease: str | None = None

    def __repr__(self) -> str:
        return f"NewDeployment({self.name}, tag={self.tag})"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request to update a deployment. UNSET keeps; None in a mapping removes.

    `accept_moved_tag`: the contents of the tag may be others than when they were taken before.
    `debug`: of the tag its debug variant, or the release that that is one of.
    """

    tag: str | msgspec.UnsetType = msgspec.UNSET
    listen: Listen | msgspec.UnsetType = msgspec.UNSET
    publish: tuple[Publish, ...] | msgspec.UnsetType = msgspec.UNSET
    domain: str | msgspec.UnsetType | None = msgspec.UNSET
    probes: ProbesChange = KEEP_PROBES
    variables: Mapping[str, str | None] | msgspec.UnsetType | None = msgspec.UNSET
    secrets: Mapping[str, str | None] | msgspec.UnsetType | None = msgspec.UNSET
    staging: bool = False
    strategy: Strategy | None = None
    revert_after_switch: bool | None = None
    restart_old_on_failure: bool = False
    accept_moved_tag: bool = False
    debug: bool | msgspec.UnsetType = msgspec.UNSET
    lease: str | None = None

    def __repr__(self) -> str:
        return f"Change(tag={self.tag})"


class PlanQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A dry run: of a deployment's update to a tag, or of a bare demand.

    `variables` and `secrets`: the names of those that the update would be given; `unset_…`: of
    those that it would lose. The rest is as in a `Change`.
    """

    deployment: DeploymentName | None = None
    tag: str | None = None
    demand: Demand | None = None
    strategy: Strategy | None = None
    staging: bool = False
    accept_moved_tag: bool = False
    debug: bool | msgspec.UnsetType = msgspec.UNSET
    variables: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    unset_variables: tuple[str, ...] = ()
    unset_secrets: tuple[str, ...] = ()
    listen: Listen | msgspec.UnsetType = msgspec.UNSET
    publish: tuple[Publish, ...] | msgspec.UnsetType = msgspec.UNSET
    domain: str | msgspec.UnsetType | None = msgspec.UNSET
    probes: ProbesChange = KEEP_PROBES


class NewLease(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request for a promise: of what a deployment's update takes, or a bare demand."""

    deployment: DeploymentName | None = None
    tag: str | None = None
    demand: Demand | None = None
    strategy: Strategy | None = None
    ttl_s: float
