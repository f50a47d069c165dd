"""Whether this host can have guests on taps: tried in a namespace that ends with the trial."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from agent.enclaves import tap_filter
from agent.enclaves.filters import NEEDS, Hook, commands
from agent.enclaves.tap_links import PORT
from agent.host.commands import CommandError, RunCommand, run_command


async def probe_tap(
    run: RunCommand = run_command,
    scratch: Sequence[str] = ("unshare", "--net", "--"),
) -> str | None:
    """Why this host cannot have a tap network, or None.

    Bridge and tap are made in a network namespace that ends with the tool: nothing of the host
    is touched. `scratch`, put before a command, has it run in one.
    """
    for tool in ("bridge", "tc"):
        if shutil.which(tool) is None:
            return f"the tool `{tool}` (package iproute2) is not installed"
    lines = (
        "link add name probe type bridge",
        "tuntap add dev probe-tap mode tap",
        "link set dev probe-tap master probe",
        f"link set dev probe-tap {PORT}",
    )
    gate = tap_filter.to_host("192.0.2.1")
    filters = commands({Hook("lo", "ingress"): gate, Hook("lo", "egress"): gate})
    tries = (
        ("ip", "".join(f"{line}\n" for line in lines), "no bridge with a tap can be made: {}"),
        ("tc", filters, f"a guest could not be held to its address ({{}}): it needs {NEEDS}"),
    )
    for tool, script, why in tries:
        try:
            done = await run([*scratch, tool, "-batch", "-"], stdin=script.encode())
        except CommandError as error:
            return str(error)
        if done.status != 0:
            return why.format(done.complaint)
    return None
