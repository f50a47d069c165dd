"""The section `limits` of the configuration: one tenant's share of what all of them use."""

from __future__ import annotations

import msgspec


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`auto` is a share of what the data plane can have (`traffic/limits.py` says which).

    `guest_*`: flows that a guest opens, of every protocol. `deployment_*`: connections to one
    deployment (with nftables: to each of its enclaves). `source_connections`: those among them
    from one address. What is counted is open; `*_per_s` is how fast they may begin, with twice as
    many at once. `idle_s`: a connection over which nothing was said for so long is over.
    """

    guest_flows: str | int = "auto"
    guest_flows_per_s: int = 500
    deployment_connections: str | int = "auto"
    deployment_connections_per_s: int = 5000
    source_connections: str | int = "auto"
    idle_s: int = 3600


DEFAULT_LIMITS = LimitsConfig()
