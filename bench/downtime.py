"""Downtime of a stop_then_start, seen from outside, beside a shell script with bare QEMU.

It lasts from the last connection that the old version accepted to the first healthy answer of the
new one. The same client measures both, on the port that the workload publishes in the clear.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import median

from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId
from bench.bare_vm import BareVm, bare_network
from bench.changeover import changeover
from bench.daemon import Daemon, running
from bench.figures import Bound, Figure, Table
from bench.knock import EVERY_S, Knocks
from bench.knocker import knocking
from bench.launch import executions
from bench.options import Options
from bench.place import Place
from bench.releases import TAGS, local_release
from bench.show import Show

NAME = "downtime"
OVERHEAD_S = 0.5
_PORT = 8080
_SETTLE_S = 2.0
_BARE = (EnclaveId("bareqold"), EnclaveId("bareqnew"))


@dataclass(frozen=True, slots=True)
class ByAgent:
    """One update: its downtime seen from outside, and as the agent tells it."""

    seen_s: float
    told_s: float


@dataclass(frozen=True, slots=True)
class ByScript:
    """One changeover by the script: its downtime, and what of it is the guest's own."""

    seen_s: float
    stop_s: float
    boot_s: float


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Agent and script by turns, on an otherwise idle machine."""
    releases = [await local_release(place, tag) for tag in TAGS]
    agents: list[ByAgent] = []
    scripts: list[ByScript] = []
    async with running(place, update={"dwell_s": 2, "stop_grace_s": 30}) as daemon:
        host = (await daemon.want("GET", "/status"))["host"]
        accel, kind = host["accel"], host["network"]
        async with bare_network(place, kind) as network:
            old, new = (
                BareVm(place, *release, network, accel, enclave)
                for release, enclave in zip(releases, _BARE, strict=True)
            )
            for number in range(options.rounds):
                agents.append(await _by_agent(place, daemon))
                scripts.append(await _by_script(place, old, new))
                show.line(_told(number, agents[-1], scripts[-1]))
    table = Table(f"updates: downtime of a stop_then_start ({accel}, network {kind})")
    table.figures = _figures(agents, scripts)
    table.notes = [
        f"{options.rounds} times by turns; knocks every {EVERY_S * 1000:.0f} ms",
        "guest stop: power button to the end of QEMU; guest boot: start of QEMU to the first "
        "healthy answer; both of the bare VMs, medians of their sums",
    ]
    return table


async def _by_agent(place: Place, daemon: Daemon) -> ByAgent:
    """Nothing of it is left afterwards, so that the script has the machine for itself."""
    await daemon.want("PUT", f"/v1/deployments/{NAME}", place.deployment(TAGS[0]))
    await daemon.finish(NAME)
    (old,) = (await daemon.deployment(NAME))["enclaves"]
    async with knocking(Endpoint(address="127.0.0.1", port=place.plain_port)) as knocker:
        await knocker.answered()
        await asyncio.sleep(_SETTLE_S)
        before = len(executions(place))
        body = {"tag": TAGS[1], "strategy": "stop_then_start"}
        await daemon.want("POST", f"/v1/deployments/{NAME}/updates", body)
        knocks = await knocker.answered(besides=old["id"])
    update = await daemon.finish(NAME)
    (started,) = executions(place)[before:]
    await daemon.delete(NAME)
    return ByAgent(_downtime(knocks, old["id"], started), update["downtime_s"])


async def _by_script(place: Place, old: BareVm, new: BareVm) -> ByScript:
    async with (
        changeover(place, old, new) as script,
        knocking(old.endpoint(_PORT)) as knocker,
    ):
        await knocker.answered()
        await asyncio.sleep(_SETTLE_S)
        moments = await script.go()
        knocks = await knocker.answered(besides=_BARE[0])
    return ByScript(
        seen_s=_downtime(knocks, _BARE[0], moments["started"]),
        stop_s=moments["gone"] - moments["pressed"],
        boot_s=knocks.healthy[_BARE[1]] - moments["started"],
    )


def _downtime(knocks: Knocks, old: str, started: float) -> float:
    """`started`: when the new QEMU was. What was accepted before, the old one accepted."""
    last = max(at for at in knocks.accepted if at < started)
    first = min(at for name, at in knocks.healthy.items() if name != old)
    return first - last


def _told(number: int, agent: ByAgent, script: ByScript) -> str:
    return (
        f"{number + 1}: down for {agent.seen_s:.2f} s, as the agent tells it "
        f"{agent.told_s:.2f} s; "
        f"by script {script.seen_s:.2f} s, guest stop {script.stop_s:.2f} s, "
        f"guest boot {script.boot_s:.2f} s"
    )


def _figures(agents: list[ByAgent], scripts: list[ByScript]) -> list[Figure]:
    seen_s = median(one.seen_s for one in agents)
    by_script_s = median(one.seen_s for one in scripts)
    return [
        Figure("guest stop", median(one.stop_s for one in scripts), "s"),
        Figure("guest boot", median(one.boot_s for one in scripts), "s"),
        Figure(
            "downtime",
            seen_s,
            "s",
            baseline=median(one.stop_s + one.boot_s for one in scripts),
            baseline_is="guest stop + guest boot",
            bound=Bound(OVERHEAD_S, of="excess"),
        ),
        Figure("downtime", seen_s, "s", baseline=by_script_s, baseline_is="shell script"),
        Figure(
            "downtime as the agent tells it",
            median(one.told_s for one in agents),
            "s",
            baseline=seen_s,
            baseline_is="seen from outside",
        ),
    ]
