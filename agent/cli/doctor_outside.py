"""The doctor's line about whether listeners can be asked as clients elsewhere ask them.

The place outside is made, and is gone when the line is there.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config

_INSTEAD = "listeners are asked from this host itself, so that its forward path is not seen"


def outside_line(config: Config) -> Line:
    """A warning where it cannot be had: what drops clients' traffic may then go unnoticed."""
    if config.probes.outside == "never":
        return Line("outside", "ok", "configured: nobody asks listeners as clients do")
    if os.geteuid() != 0:
        return Line("outside", "warn", f"not root: {_INSTEAD}", "run as root")
    from agent.host.lent_namespace import LentNamespace
    from agent.host.network_namespace import NetworkNamespace
    from agent.host.units import BOOTED
    from agent.probes.outside_link import Create, probe_outside

    lent = BOOTED.is_dir() and config.supervisor != "detached"  # as the agent has it
    create: Create = LentNamespace.create if lent else NetworkNamespace.create
    if (lacks := asyncio.run(probe_outside(create))) is not None:
        mend = "modprobe veth; grant CAP_SYS_ADMIN and CAP_NET_ADMIN, and network namespaces"
        return Line("outside", "warn", f"{lacks}: {_INSTEAD}", mend)
    detail = "listeners are asked as clients do, from a network namespace with a link of its own"
    return Line("outside", "ok", detail)
