"""Idle: what the agent itself costs with two enclaves, and how fast it answers and starts."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from bench.daemon import BenchError, Daemon, running
from bench.figures import Bound, Figure, Table, median, percentile
from bench.open_loop import send_openly
from bench.options import Options
from bench.place import Place, free_ports
from bench.processes import Usage, peak_rss_mib, rss_mib, usage
from bench.releases import TAGS
from bench.show import Show

NAMES = ("idle-a", "idle-b")
STATUS_PER_S = 500
STATUS_S = 30
STATUS_CONNECTIONS = 32
STARTS = 5
_SETTLE_S = 20


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Probes and times as the agent has them by default, but for a shorter soak."""
    async with running(place, update={"soak_s": 5}) as daemon:
        await _prepare(place, daemon)
        show.line(f"two enclaves, probed, one of them updated; settling {_SETTLE_S} s")
        await asyncio.sleep(_SETTLE_S)
        before = usage(daemon.pid)
        await asyncio.sleep(options.seconds)
        after, rss = usage(daemon.pid), rss_mib(daemon.pid)
        show.line(
            f"RSS {rss:.1f} MiB, {after.cores_since(before) * 100:.2f} % of a core; "
            f"now /status {STATUS_PER_S} times a second"
        )
        answer = await send_openly(
            place.status_port,
            "/status",
            per_s=STATUS_PER_S,
            seconds=STATUS_S,
            connections=STATUS_CONNECTIONS,
        )
        loaded, rss_after = usage(daemon.pid), rss_mib(daemon.pid)
        peak = peak_rss_mib(daemon.pid)
        starts = await _starts(daemon, show)
        again = rss_mib(daemon.pid)
    table = Table("idle: the agent with two enclaves")
    table.figures = _figures(before, after, rss, rss_after, answer, starts)
    table.notes = [
        f"RSS at its peak {peak:.1f} MiB; of an agent just started, with two adopted, "
        f"{again:.1f} MiB",
        f"CPU includes the tools that the agent runs; over {options.seconds:.0f} s",
        f"CPU of the agent while it answered /status: "
        f"{loaded.cores_since(after) * 100:.0f} % of a core; of the generator: "
        f"{answer['cpu'] * 100:.0f} %, its worst late start {answer['late_s'] * 1000:.1f} ms "
        "(counted in the latencies)",
        f"starts: {', '.join(f'{s:.2f}' for s in starts)} s",
    ]
    return table


async def _prepare(place: Place, daemon: Daemon) -> None:
    """Two deployments; an update of one; everything that a reader may ask, asked."""
    for name in NAMES:
        https, plain = free_ports(2)
        body = place.deployment(TAGS[0], https=https, plain=plain)
        await daemon.want("PUT", f"/v1/deployments/{name}", body)
        await daemon.finish(name)
    await daemon.want("POST", f"/v1/deployments/{NAMES[0]}/updates", {"tag": TAGS[1]})
    await daemon.finish(NAMES[0])
    url = f"http://127.0.0.1:{place.status_port}"
    async with aiohttp.ClientSession(url) as session:
        for path in ("/metrics", "/status", "/healthz", "/readyz", "/metrics"):
            async with session.get(path) as answer:
                if answer.status != 200:
                    raise BenchError(f"{path} answered {answer.status}")
                await answer.read()
    for path in ("/v1/deployments", "/v1/enclaves", "/v1/capacity", "/v1/events"):
        await daemon.want("GET", path)


async def _starts(daemon: Daemon, show: Show) -> list[float]:
    """Seconds to READY=1, with two enclaves to adopt each time."""
    took, pids = [], await _vm_pids(daemon)
    for _ in range(STARTS):
        await daemon.stop()
        await asyncio.sleep(1)
        took.append(await daemon.start())
        if (now := await _vm_pids(daemon)) != pids or None in now:
            raise BenchError(f"READY, but the VMs are processes {now}, not {pids}")
        show.line(f"READY {took[-1]:.2f} s after the start, with two enclaves adopted")
        await asyncio.sleep(3)
    await asyncio.sleep(5)
    return took


async def _vm_pids(daemon: Daemon) -> list[int | None]:
    enclaves = (await daemon.want("GET", "/v1/enclaves"))["enclaves"]
    return sorted(one["pid"] for one in enclaves)


def _figures(
    before: Usage, after: Usage, rss: float, rss_after: float, answer: Any, starts: list[float]
) -> list[Figure]:
    latencies_ms = [1000 * value for value in answer["latencies_s"]]
    return [
        Figure("RSS", rss, "MiB", bound=Bound(64), note="idle"),
        Figure(
            "RSS", rss_after, "MiB", bound=Bound(64), note=f"after {len(latencies_ms)} /status"
        ),
        Figure("CPU", after.cores_since(before) * 100, "% of a core", bound=Bound(1)),
        Figure(
            f"/status at {STATUS_PER_S}/s, p99",
            percentile(latencies_ms, 99),
            "ms",
            bound=Bound(5),
            note=f"{STATUS_CONNECTIONS} kept connections",
        ),
        Figure(f"/status at {STATUS_PER_S}/s, median", median(latencies_ms), "ms"),
        Figure(
            "start to READY",
            median(starts),
            "s",
            bound=Bound(0.8),
            note=f"median of {len(starts)}",
        ),
    ]
