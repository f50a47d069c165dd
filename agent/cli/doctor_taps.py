"""The doctor's line about taps: whether a guest can be held to its own card and address.

Bridge, tap and filters are tried in a network namespace that ends with the trial.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config

_INSTEAD = "user-mode network, where guests can reach what listens on the host's loopback"


def tap_line(config: Config) -> Line:
    """An error where taps are insisted on."""
    from agent.config import NetworkMode

    mode = config.network.mode
    if mode is NetworkMode.USER:
        return Line("network", "ok", f"configured: {_INSTEAD}")
    state, instead = ("error", "") if mode is NetworkMode.TAP else ("warn", f": {_INSTEAD}")
    if os.geteuid() != 0:
        return Line("network", state, f"not root{instead}", "run as root for taps on a bridge")
    if not Path("/dev/net/tun").exists():
        return Line("network", state, f"/dev/net/tun is not there{instead}", "modprobe tun")
    for tool in ("ip", "bridge", "tc"):
        if shutil.which(tool) is None:
            mend = "apt-get install iproute2"
            return Line("network", state, f"{tool} is not there{instead}", mend)
    from agent.enclaves.tap_probe import probe_tap

    if (lacks := asyncio.run(probe_tap())) is not None:
        mend = "modprobe cls_bpf sch_ingress (Ubuntu: package linux-modules-extra), CAP_NET_ADMIN"
        return Line("network", state, f"{lacks}{instead}", mend)
    return Line("network", "ok", "taps can be made, each held to its guest's card and address")
