"""The doctor's line about other programs' packet filters: whether guests' traffic gets past them.

The rules are read, and nothing is sent: that a client really gets through is seen from outside.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config


def rules_line(config: Config) -> Line:
    """A warning for each chain that drops; where the data plane forwards nothing, none matters."""
    from agent.config import NetworkMode, TrafficMode

    forwards = config.traffic.mode in (TrafficMode.AUTO, TrafficMode.NFTABLES)
    if config.network.mode is NetworkMode.USER or not forwards:
        return Line("forwarding", "ok", "the data plane does not forward packets")
    if os.geteuid() != 0 or shutil.which("nft") is None:
        return Line("forwarding", "ok", "not looked at: that takes root and nft")
    from agent.errors import AgentError, describe
    from agent.traffic.foreign_watch import ForeignRules
    from agent.traffic.nftables_kernel import table_of

    network = config.network
    try:
        foreign = ForeignRules(network.bridge, network.subnet, table_of(network.bridge))
        found = list(asyncio.run(foreign.look()).values())
    except AgentError as error:
        return Line("forwarding", "warn", describe(error), "see that nft works on this host")
    if not found:
        detail = f"no other program's rules drop what {network.bridge} needs"
        return Line("forwarding", "ok", detail)
    details, mends = ("; ".join(getattr(one, of) for one in found) for of in ("detail", "mend"))
    return Line("forwarding", "warn", details, mends)
