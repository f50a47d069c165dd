"""The limits that keep one tenant from using up what all of them share. Pure.

Each is known, where something was refused by it, by the name of its key in the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.config_limits import LimitsConfig

GUEST_FLOWS = "guest_flows"
GUEST_FLOWS_PER_S = "guest_flows_per_s"
DEPLOYMENT_CONNECTIONS = "deployment_connections"
DEPLOYMENT_CONNECTIONS_PER_S = "deployment_connections_per_s"
SOURCE_CONNECTIONS = "source_connections"

_LEAST = 64  # of a share of something very small
_GUEST_SHARE, _DEPLOYMENT_SHARE, _SOURCE_SHARE = 16, 4, 2


@dataclass(frozen=True, slots=True)
class Limits:
    """`LimitsConfig` with numbers."""

    guest_flows: int
    guest_flows_per_s: int
    deployment_connections: int
    deployment_connections_per_s: int
    source_connections: int
    idle_s: int


def limits_within(config: LimitsConfig, capacity: int) -> Limits:
    """`capacity`: how many connections the data plane can have, all tenants together.

    `auto`: a guest may open a sixteenth of it, a deployment be sent a quarter, and one source
    have half of its deployment's.
    """
    deployment = _number(config.deployment_connections, capacity // _DEPLOYMENT_SHARE)
    return Limits(
        guest_flows=_number(config.guest_flows, capacity // _GUEST_SHARE),
        guest_flows_per_s=config.guest_flows_per_s,
        deployment_connections=deployment,
        deployment_connections_per_s=config.deployment_connections_per_s,
        source_connections=_number(config.source_connections, deployment // _SOURCE_SHARE),
        idle_s=config.idle_s,
    )


def _number(configured: str | int, share: int) -> int:
    return max(_LEAST, share) if isinstance(configured, str) else configured
