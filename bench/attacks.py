"""Attacks: each held for a minute against each listener, beside an enclave that is probed.

What the agent keeps in memory, how it answers `/healthz` to somebody new meanwhile, whether
probes or the enclave are disturbed, and how much it writes into its log.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from pathlib import Path

from bench.daemon import Daemon, running
from bench.figures import Bound, Figure, Table, percentile
from bench.fleet import Fleet, fleet
from bench.generator import generator
from bench.hostile import AT_THE_TLS_DOOR, KEY_UPDATES, PLAIN, Spec
from bench.options import Options
from bench.place import Place
from bench.processes import rss_mib
from bench.releases import TAGS
from bench.show import Show

NAME = "attacked"
HEALTH_EVERY_S = 0.1
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_TIMEOUT_S = 10.0
_SETTLE_S = 10.0
# A member that may change is trusted with more than a stranger: bodies are only it's to send.
_NOT_OF_OBSERVERS = "slow_body"
_LINE = re.compile(r"[0-9]+")


def specs(place: Place, made: Fleet) -> list[tuple[str, Spec]]:
    """What is attacked, in which way."""
    member = tuple(str(one) for one in made.files(made.observer))
    assert len(member) == 3
    found = []
    for kind in PLAIN:
        status = Spec(kind=kind, port=place.status_port)
        found.append((f"status port: {kind}", status))
        found.append((f"unix socket: {kind}", Spec(kind=kind, path=str(place.socket))))
        if kind != _NOT_OF_OBSERVERS:
            found.append((f"RPC: {kind}", Spec(kind=kind, port=made.rpc_port, member=member)))
    return found + [
        (f"RPC: {kind}", Spec(kind=kind, port=made.rpc_port, member=member))
        for kind in (*AT_THE_TLS_DOOR, KEY_UPDATES)
    ]


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Probes as the agent has them by default."""
    table = Table(f"attacks: each for {options.seconds:.0f} s, beside an enclave")
    async with fleet(place) as made, running(place, **made.sections) as daemon:
        await daemon.want("PUT", f"/v1/deployments/{NAME}", place.deployment(TAGS[0]))
        await daemon.finish(NAME)
        for what, spec in specs(place, made):
            await asyncio.sleep(_SETTLE_S)
            table.figures += await _one(daemon, what, spec, options.seconds)
            show.line(", ".join(f"{f.what} {f.measured:.1f} {f.unit}" for f in table.figures[-4:]))
    table.notes = ["/healthz is asked over a new connection each time, ten times a second"]
    return table


async def _one(daemon: Daemon, what: str, spec: Spec, seconds: float) -> list[Figure]:
    place = daemon.place
    before, logged = rss_mib(daemon.pid), place.log.stat().st_size
    took: list[float] = []
    most, failing = before, 0
    async with generator("hostile", spec):
        ends = time.monotonic() + seconds
        while (began := time.monotonic()) < ends:
            took.append(await _healthy(place.status_port))
            most = max(most, rss_mib(daemon.pid))
            await asyncio.sleep(max(0.0, began + HEALTH_EVERY_S - time.monotonic()))
        probes = (await daemon.deployment(NAME))["enclaves"]
        failing = sum(enclave["healthy"] is not True for enclave in probes)
    lines = _most_in_a_second(_lines(place.log, logged), seconds)
    return [
        Figure(f"{what}: RSS", most, "MiB", before, "before", Bound(16, "excess")),
        Figure(f"{what}: /healthz p99", percentile(took, 99) * 1000, "ms", bound=Bound(100)),
        Figure(f"{what}: enclaves not healthy", failing, "", bound=Bound(0), loss=True),
        Figure(f"{what}: lines of a kind a second", lines, "", bound=Bound(1)),
    ]


async def _healthy(port: int) -> float:
    """Seconds until a 200; what does not come counts as the time-out."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(_HEALTH)
                answer = await reader.read(16)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return _TIMEOUT_S
    return time.monotonic() - began if b" 200 " in answer else _TIMEOUT_S


def _lines(log: Path, offset: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(offset, os.SEEK_SET)
        return file.read().decode(errors="replace").splitlines()


def _most_in_a_second(lines: list[str], seconds: float) -> float:
    """Of the kind that there is most of; kinds are lines without their numbers."""
    kinds = Counter(_LINE.sub("", line)[:120] for line in lines)
    return max(kinds.values(), default=0) / seconds
