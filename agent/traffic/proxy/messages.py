"""What the agent and the traffic proxy say to each other: one JSON object per line each way.

The proxy outlives the agent that started it, so an agent of a later version speaks to it: this
protocol is only ever added to. `PROTOCOL` grows with each addition; both sides bear fields that
they do not know.
"""

from __future__ import annotations

import msgspec

from agent.config_limits import LimitsConfig
from agent.model.enclave import Endpoint
from agent.model.resources import Listen
from agent.traffic.port import RouteOrder

PROTOCOL = 2  # 2: limits, refused, taken
LINE_LIMIT = 4 * 1024 * 1024


class Version(msgspec.Struct, frozen=True, tag="version", tag_field="op"):
    """Asks who is there."""


class Apply(msgspec.Struct, frozen=True, tag="apply", tag_field="op"):
    order: RouteOrder


class Remove(msgspec.Struct, frozen=True, tag="remove", tag_field="op"):
    deployment: str


class Observe(msgspec.Struct, frozen=True, tag="observe", tag_field="op"):
    """Asks for the orders in force."""


class Connections(msgspec.Struct, frozen=True, tag="connections", tag_field="op"):
    endpoint: Endpoint


class Reset(msgspec.Struct, frozen=True, tag="reset", tag_field="op"):
    endpoint: Endpoint


class SetLimits(msgspec.Struct, frozen=True, tag="limits", tag_field="op"):
    """Tells what each tenant may have from now on. Without it the defaults are in force."""

    limits: LimitsConfig


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="op"):
    """Asks what limits have refused."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown", tag_field="op"):
    """Ends the proxy with all its connections; its routes are forgotten."""


Request = Version | Apply | Remove | Observe | Connections | Reset | SetLimits | Refused | Shutdown


class ProxyReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to any request; which fields count depends on it.

    `stale` and `taken` go with `error`; `taken`: the listener that another process has (2).
    """

    error: str | None = None
    stale: bool = False
    taken: Listen | None = None
    protocol: int | None = None
    pid: int | None = None
    count: int | None = None
    orders: tuple[RouteOrder, ...] = ()
    refused: dict[str, dict[str, int]] = {}
