"""Host: the agent as a service of systemd with eight enclaves; adoption, its cost, an upgrade.

In a host of its own (a container in which systemd boots); installed from wheels of an earlier
commit and of this checkout.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from pathlib import Path

from bench.daemon import BenchError
from bench.figures import Bound, Figure, Table, median
from bench.options import Options
from bench.place import REPO, Place
from bench.releases import TAGS
from bench.show import Show
from tests.fakes.booted_host import missing
from tests.fakes.installed_agent import AGENT, NEW, Installed, installed_host

ENCLAVES = 8
FIRST_PORT = 8443
KILLS = 5
_SETTLE_S = 30
_UP_S = 600
_DEFAULTS = {"probes": {}, "update": {"stop_grace_s": 1}}


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Probes as the agent has them by default."""
    if missing():
        raise BenchError(f"{', '.join(missing())}: not here; apt-get install systemd-container")
    return await asyncio.to_thread(_measure, place, options, show)


def _measure(place: Place, options: Options, show: Show) -> Table:
    with tempfile.TemporaryDirectory(prefix="ea-bench-host.", dir="/var/tmp") as stuff:
        Path(stuff).chmod(0o755)
        with installed_host(Path(stuff), place.source, **_DEFAULTS) as agent:
            half = ENCLAVES // 2
            _deploy(agent, range(half))
            show.line(f"{half} enclaves are healthy; now an upgrade to this checkout")
            with agent.load(FIRST_PORT) as told:
                agent.install(NEW)
            _deploy(agent, range(half, ENCLAVES))
            show.line(f"{ENCLAVES} enclaves are healthy; settling {_SETTLE_S} s")
            time.sleep(_SETTLE_S)
            rss, cpu = _cost(agent, options.seconds)
            show.line(f"RSS {rss:.1f} MiB, {cpu:.2f} % of a core; now {KILLS} kills")
            adoptions = [_kill(agent) for _ in range(KILLS)]
            show.line(f"adopted in {', '.join(f'{s:.2f}' for s in adoptions)} s")
    refused = [one for one in told["failed"] if one.startswith("local")]
    failed = [one for one in told["failed"] if not one.startswith("local")]
    for one in told["failed"]:
        show.line(one)
    table = Table(f"host: a service of systemd with {ENCLAVES} enclaves")
    table.figures = [
        Figure(
            f"kill -9: start to READY, {ENCLAVES} adopted",
            median(adoptions),
            "s",
            bound=Bound(1),
            note=f"median of {KILLS}",
        ),
        Figure("RSS", rss, "MiB", bound=Bound(80)),
        Figure("CPU", cpu, "% of a core", bound=Bound(1), note=f"over {options.seconds:.0f} s"),
        Figure("failed at the enclave, upgrade", len(failed), "", bound=Bound(0), loss=True),
        Figure("refused at the local API, upgrade", len(refused), "", bound=Bound(0), loss=True),
    ]
    table.notes = [f"in the upgrade: {told['guest']} requests to it, {told['local']} to the API"]
    return table


def _deploy(agent: Installed, numbers: range) -> None:
    for number in numbers:
        listen = f"127.0.0.1:{FIRST_PORT + number}"
        words = ("--repo", REPO, "--tag", TAGS[0], "--listen", listen, "--wait")
        agent.cli("deploy", f"bench-{number}", *words, timeout_s=_UP_S)


def _cost(agent: Installed, seconds: float) -> tuple[float, float]:
    """RSS in MiB, and CPU in per cent of a core (of the tools that it runs, too)."""
    before = _ticks(agent)
    time.sleep(seconds)
    used = _ticks(agent) - before
    status = agent.host.run("cat", f"/proc/{agent.pid()}/status").stdout
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024, used / seconds  # 100 ticks are a second of a core


def _ticks(agent: Installed) -> int:
    stat = agent.host.run("cat", f"/proc/{agent.pid()}/stat").stdout
    fields = stat[stat.rindex(")") + 2 :].split()
    return sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime


def _kill(agent: Installed) -> float:
    """Seconds from the new process's start to READY=1, with every enclave as it was."""
    before, killed = {n: e["pid"] for n, e in agent.enclaves().items()}, agent.pid()
    agent.host.run("kill", "-9", str(killed))
    while agent.pid() in (0, killed):
        time.sleep(0.05)
    agent.until_ready()
    if {n: e["pid"] for n, e in agent.enclaves().items()} != before:
        raise BenchError("the VMs are not the processes that they were")
    names = ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    shown = agent.host.show(AGENT, *names)
    time.sleep(3)
    return (int(shown[names[1]]) - int(shown[names[0]])) / 1e6
