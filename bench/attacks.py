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
from dataclasses import dataclass
from pathlib import Path

from bench.daemon import Daemon, running
from bench.figures import Bound, Figure, Table, percentile
from bench.fleet import Fleet, fleet
from bench.generator import generator
from bench.hostile import AT_THE_TLS_DOOR, KEY_UPDATES, PLAIN, Spec
from bench.options import Options
from bench.place import Place, free_ports
from bench.processes import rss_mib
from bench.releases import TAGS
from bench.show import Show

NAME = "attacked"
WARM = ("/healthz", "/status", "/metrics", "/openapi.json")
HEALTH_EVERY_S = 0.1
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_TIMEOUT_S = 10.0
_CALM_S = 3.0  # before each, in which the same is measured
# A member that may change is trusted with more than a stranger: bodies are only it's to send.
_NOT_OF_OBSERVERS = "slow_body"
_NUMBER = re.compile(r"[0-9]+")
_SECOND = len("2026-01-01T00:00:00")  # how a line begins
_KIND = 120


def specs(place: Place, made: Fleet, guests: int) -> list[tuple[str, Spec]]:
    """What is attacked, in which way. `guests`: the port of the collateral endpoint."""
    member = tuple(str(one) for one in made.files(made.observer))
    assert len(member) == 3
    found = []
    for kind in PLAIN:
        status = Spec(kind=kind, port=place.status_port)
        found.append((f"status port: {kind}", status))
        found.append((f"unix socket: {kind}", Spec(kind=kind, path=str(place.socket))))
        if kind != _NOT_OF_OBSERVERS:
            found.append((f"RPC: {kind}", Spec(kind=kind, port=made.rpc_port, member=member)))
        asked = "/attestation-collaterals"  # which answers little: nothing of it is large
        found.append((f"collateral endpoint: {kind}", Spec(kind=kind, port=guests, large=asked)))
    return found + [
        (f"RPC: {kind}", Spec(kind=kind, port=made.rpc_port, member=member))
        for kind in (*AT_THE_TLS_DOOR, KEY_UPDATES)
    ]


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Probes as the agent has them by default."""
    table = Table(f"attacks: each for {options.seconds:.0f} s, beside an enclave")
    (guests,) = free_ports(1)
    collateral = {"collateral": {"listen": f"127.0.0.1:{guests}", "offline": True}}
    async with (
        fleet(place) as made,
        running(
            place, module="bench.with_collateral", attestation=collateral, **made.sections
        ) as daemon,
    ):
        await daemon.want("PUT", f"/v1/deployments/{NAME}", place.deployment(TAGS[0]))
        await daemon.finish(NAME)
        for path in WARM:
            await daemon.ask("GET", path)
        attacked, at_first = Attacked(daemon), rss_mib(daemon.pid)
        for what, spec in _chosen(specs(place, made, guests), options.attacks):
            table.figures += await attacked.hold(what, spec, options.seconds)
            show.line(", ".join(f"{f.what} {f.measured:.1f} {f.unit}" for f in table.figures[-4:]))
        left = Figure("all: RSS after them", rss_mib(daemon.pid), "MiB", at_first, "before all")
        table.figures.append(left)
    table.notes = [
        "/healthz is asked over a new connection each time, ten times a second",
        f"before: in the {_CALM_S:.0f} s before each",
    ]
    return table


def _chosen(found: list[tuple[str, Spec]], words: tuple[str, ...]) -> list[tuple[str, Spec]]:
    return [one for one in found if not words or any(word in one[0] for word in words)]


@dataclass
class Attacked:
    """A daemon, while it is attacked in one way after another."""

    daemon: Daemon

    async def hold(self, what: str, spec: Spec, seconds: float) -> list[Figure]:
        """One attack, so long."""
        place = self.daemon.place
        calm, before_mib = await self._watch(_CALM_S)
        logged, seen = place.log.stat().st_size, await self._newest_event()
        async with generator("hostile", spec):
            took, most = await self._watch(seconds)
        enclaves = (await self.daemon.deployment(NAME))["enclaves"]
        disturbed = sum(enclave["healthy"] is not True for enclave in enclaves)
        disturbed += await self._health_events(seen)
        lines = _most_in_a_second(_lines(place.log, logged))
        excess, bound = Bound(16, "excess"), Bound(100)
        p99, before = (percentile(one, 99) * 1000 for one in (took, calm))
        return [
            Figure(f"{what}: RSS", most, "MiB", before_mib, "before", excess),
            Figure(f"{what}: /healthz p99", p99, "ms", before, "before", bound),
            Figure(f"{what}: probes disturbed", disturbed, "", bound=Bound(0), loss=True),
            Figure(f"{what}: lines of a kind a second", lines, "", bound=Bound(1)),
        ]

    async def _watch(self, seconds: float) -> tuple[list[float], float]:
        """How long each answer of /healthz took (s), and the most memory (MiB)."""
        took: list[float] = []
        most = 0.0
        ends = time.monotonic() + seconds
        while (began := time.monotonic()) < ends:
            took.append(await _healthy(self.daemon.place.status_port))
            most = max(most, rss_mib(self.daemon.pid))
            await asyncio.sleep(max(0.0, began + HEALTH_EVERY_S - time.monotonic()))
        return took, most

    async def _newest_event(self) -> int:
        seen = 0
        while events := (await self.daemon.want("GET", f"/v1/events?after={seen}"))["events"]:
            seen = events[-1]["sequence"]
        return int(seen)

    async def _health_events(self, after: int) -> int:
        """Times that the enclave's health changed since then."""
        events = (await self.daemon.want("GET", f"/v1/events?after={after}"))["events"]
        return sum(event["kind"] == "health" for event in events)


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


def _most_in_a_second(lines: list[str]) -> int:
    """Of the kind that there is most of; kinds are lines without their numbers."""
    told = ((line[:_SECOND], _NUMBER.sub("", line)[:_KIND]) for line in lines)
    return max(Counter(told).values(), default=0)
