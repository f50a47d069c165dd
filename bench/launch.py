"""Launch: from the request to QEMU's execution, and to Ready beside a bare start of the image.

And what it costs the agent itself: command line, predicted digest, the worst lag of its loop.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Any

from bench.bare_vm import BareVm, bare_network
from bench.confidential import argv_figure, lag_figures, prediction_figure
from bench.daemon import BenchError, Daemon, running
from bench.figures import Bound, Figure, Table, median, percentile
from bench.options import Options
from bench.place import Place
from bench.releases import TAGS, local_release
from bench.show import Show

NAME = "launch"
DWELL_S = 5.0
LAG_ROUNDS = 3


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Agent and bare starts by turns, on an otherwise idle machine."""
    release, image = await local_release(place, TAGS[0])
    update = {"dwell_s": DWELL_S, "soak_s": 1, "drain_s": 1, "stop_grace_s": 5}
    async with running(place, update=update) as daemon:
        show.line("once before it counts: the artifacts are fetched into the cache")
        await _deploy(place, daemon)
        accel = await _accel(daemon)
        kind = (await daemon.want("GET", "/status"))["host"]["network"]
        updates = await _updates(place, daemon, show, options.rounds)
        await daemon.delete(NAME)
        execs, readies, bares = [], [], []
        async with bare_network(place, kind) as network:
            bare = BareVm(place, release, image, network, accel)
            for number in range(options.rounds):
                execution, ready = await _deploy(place, daemon)
                await daemon.delete(NAME)
                await asyncio.sleep(0.5)
                bares.append(await bare.start())
                await asyncio.sleep(0.5)
                execs.append(execution)
                readies.append(ready)
                show.line(
                    f"{number + 1}: QEMU after {execution * 1000:.0f} ms, Ready less the dwell "
                    f"after {ready:.2f} s; bare {bares[-1]:.2f} s"
                )
    table = _table(execs, updates, readies, bares, f"{accel}, network {kind}")
    table.figures += [argv_figure(), await prediction_figure(place)]
    table.figures += await lag_figures(place, show, min(options.rounds, LAG_ROUNDS), NAME)
    return table


async def _accel(daemon: Daemon) -> str:
    accel: str = (await daemon.want("GET", "/status"))["host"]["accel"]
    return accel


async def _deploy(place: Place, daemon: Daemon) -> tuple[float, float]:
    """Seconds from the PUT to the execution of QEMU, and to Ready less the dwell."""
    before = len(executions(place))
    asked = time.time()
    await daemon.want("PUT", f"/v1/deployments/{NAME}", place.deployment(TAGS[0]))
    await asyncio.sleep(3)  # asking in between would cost the booting guest time
    update = await daemon.finish(NAME)
    return _execution(place, before) - asked, moment(update["ready_at"]) - asked - DWELL_S


async def _updates(place: Place, daemon: Daemon, show: Show, rounds: int) -> list[float]:
    """Seconds from the POST of an update to the execution of QEMU; each is cancelled then."""
    took = []
    for _ in range(rounds):
        before = len(executions(place))
        asked = time.time()
        await daemon.want("POST", f"/v1/deployments/{NAME}/updates", {"tag": TAGS[1]})
        await asyncio.sleep(1)
        took.append(_execution(place, before) - asked)
        await daemon.want("POST", f"/v1/deployments/{NAME}/updates/current/cancel")
        while (await daemon.deployment(NAME))["update"]["finished_at"] is None:
            await asyncio.sleep(0.1)
    show.line(f"QEMU after the POST of an update: {' '.join(f'{s * 1000:.0f}' for s in took)} ms")
    return took


def executions(place: Place) -> list[float]:
    """The wall-clock moments at which QEMU was executed for a VM, in order.

    Written by the program that stands before it; the proof of KVM is no VM.
    """
    lines = place.executions.read_text().splitlines()
    return [float(line.split(" ", 1)[0]) for line in lines if " -uuid " in line]


def _execution(place: Place, before: int) -> float:
    found = executions(place)[before:]
    if len(found) != 1:
        raise BenchError(f"one request made QEMU start {len(found)} times")
    return found[0]


def moment(text: str) -> float:
    """A time of the API, in seconds of the wall clock."""
    return dt.datetime.fromisoformat(text).timestamp()


def _table(
    execs: list[float], updates: list[float], readies: list[float], bares: list[float], how: str
) -> Table:
    def to_exec(what: str, took: list[float]) -> Figure:
        worst = f"{len(took)} times, p90 {percentile(took, 90) * 1000:.0f} ms"
        bound = Bound(150)
        return Figure(what, median(took) * 1000, "ms", bound=bound, note=worst)

    table = Table(f"launch ({how})")
    table.figures = [
        to_exec("PUT of a deployment to QEMU's exec", execs),
        to_exec("POST of an update to QEMU's exec", updates),
        Figure(
            "PUT to Ready, less the dwell",
            median(readies),
            "s",
            baseline=median(bares),
            baseline_is="bare QEMU to its first healthy answer",
            bound=Bound(1.10, of="ratio"),
            note=f"{len(readies)} times by turns",
        ),
    ]
    table.notes = [
        f"bare {_spread(bares)} s, agent {_spread(readies)} s; the dwell is {DWELL_S:g} s",
    ]
    return table


def _spread(values: list[Any]) -> str:
    return f"{min(values):.2f}–{max(values):.2f}"
