"""The coordinator link: what it costs, how fast a change is known, how much the RPC bears.

One agent with one enclave; the coordinator is in the bench's own process, the callers of the RPC
are processes of their own. Everything is over TLS 1.3 with both certificates verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bench.daemon import BenchError, Daemon, running
from bench.figures import Bound, Figure, Table, median, percentile
from bench.fleet import Fleet, fleet
from bench.open_loop import send_openly
from bench.options import Options
from bench.place import ROOT, Place
from bench.processes import rss_mib, usage
from bench.releases import TAGS
from bench.show import Show

NAME = "linked"
CHANGES_A_ROUND = 30
RPC_PER_S, RPC_S, RPC_CONNECTIONS = 200, 20.0, 16
HANDSHAKES_S, HANDSHAKES_AT_ONCE = 5.0, 4
PEERS = 200
_TURNS = 2
_SETTLE_S = 5.0
_HANDSHAKES = (sys.executable, "-m", "bench.handshakes")
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n"


@dataclass
class _Seen:
    """Everything that was measured."""

    cpu_with: list[float] = field(default_factory=list)  # % of a core
    cpu_without: list[float] = field(default_factory=list)
    rss_with: list[float] = field(default_factory=list)  # MiB
    rss_without: list[float] = field(default_factory=list)
    peers_before: float = 0.0
    peers_open: float = 0.0
    durable_ms: list[float] = field(default_factory=list)
    known_ms: list[float] = field(default_factory=list)
    rpc_ms: list[float] = field(default_factory=list)
    plain_ms: list[float] = field(default_factory=list)
    late_ms: float = 0.0
    shakes: list[float] = field(default_factory=list)  # a second
    bare: list[float] = field(default_factory=list)
    shake_cpu_ms: list[float] = field(default_factory=list)  # of the agent, for one


async def measure(place: Place, options: Options, show: Show) -> Table:
    """What is compared is measured by turns, each time by an agent that was just started."""
    seen = _Seen()
    async with fleet(place) as made, running(place) as daemon:
        body = place.deployment(TAGS[0])
        await daemon.want("PUT", f"/v1/deployments/{NAME}", body)
        await daemon.finish(NAME)
        for _ in range(_TURNS):
            for linked in (False, True):
                await _restart(daemon, made if linked else None)
                await _rest(daemon, seen, options.seconds, linked=linked)
            show.line(
                f"at rest {seen.cpu_without[-1]:.2f} and with the link {seen.cpu_with[-1]:.2f} % "
                f"of a core, RSS {seen.rss_without[-1]:.1f} and {seen.rss_with[-1]:.1f} MiB"
            )
        await _peers(daemon, made, seen)
        show.line(f"{PEERS} peers: RSS {seen.peers_before:.1f} to {seen.peers_open:.1f} MiB")
        await _changes(daemon, made, seen, options.rounds * CHANGES_A_ROUND)
        show.line(f"changes known after {median(seen.known_ms):.0f} ms (median)")
        await _calls(place, made, seen)
        await _shakes(daemon, made, seen)
    return _table(seen, options)


async def _restart(daemon: Daemon, made: Fleet | None) -> None:
    """With the link or without; the enclave goes on meanwhile."""
    await daemon.stop()
    daemon.place.write_config(**(made.sections if made else {}))
    before = made.reports if made else 0
    await daemon.start()
    async with asyncio.timeout(20):
        while made is not None and made.reports == before:
            await asyncio.sleep(0.05)
    await asyncio.sleep(_SETTLE_S)


async def _rest(daemon: Daemon, seen: _Seen, seconds: float, *, linked: bool) -> None:
    before = usage(daemon.pid)
    await asyncio.sleep(seconds)
    cpu, rss = usage(daemon.pid).cores_since(before) * 100, rss_mib(daemon.pid)
    (seen.cpu_with if linked else seen.cpu_without).append(cpu)
    (seen.rss_with if linked else seen.rss_without).append(rss)


async def _peers(daemon: Daemon, made: Fleet, seen: _Seen) -> None:
    context = made.context(made.observer)
    async with _peer(made.rpc_port, context):
        pass  # the first one costs what all need
    await asyncio.sleep(1)
    seen.peers_before = rss_mib(daemon.pid)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(PEERS):
            await stack.enter_async_context(_peer(made.rpc_port, context))
        await asyncio.sleep(3)
        seen.peers_open = rss_mib(daemon.pid)


@contextlib.asynccontextmanager
async def _peer(port: int, context: ssl.SSLContext) -> AsyncIterator[None]:
    """One that asked once and stays."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(_HEALTH)
        if b" 200 " not in await reader.readline():
            raise BenchError("a peer was not answered")
        yield
        if reader.at_eof():
            raise BenchError("a peer was sent away")
    finally:
        writer.transport.abort()


async def _changes(daemon: Daemon, made: Fleet, seen: _Seen, count: int) -> None:
    """At moments that have nothing to do with when reports are due."""
    for n in range(count):
        verb, state = (("drain", "draining"), ("undrain", "admitting"))[n % 2]
        began = time.monotonic()
        await daemon.want("POST", f"/v1/host/{verb}")
        seen.durable_ms.append(1000 * (time.monotonic() - began))
        async with asyncio.timeout(15):
            seen.known_ms.append(1000 * (await made.told(state) - began))
        await asyncio.sleep(random.uniform(0.02, 0.3))
    if count % 2:
        await daemon.want("POST", "/v1/host/undrain")


async def _calls(place: Place, made: Fleet, seen: _Seen) -> None:
    """The same load on the plain status port, for comparison."""
    loads = (
        (seen.plain_ms, place.status_port, ()),
        (seen.rpc_ms, made.rpc_port, made.files(made.observer)),
    )
    for kept, port, files in loads:
        answer = await send_openly(
            port,
            "/status",
            per_s=RPC_PER_S,
            seconds=RPC_S,
            connections=RPC_CONNECTIONS,
            tls=files,
        )
        kept += [1000 * value for value in answer["latencies_s"]]
        seen.late_ms = max(seen.late_ms, 1000 * answer["late_s"])


async def _shakes(daemon: Daemon, made: Fleet, seen: _Seen) -> None:
    files = made.files(made.observer)
    process = await asyncio.create_subprocess_exec(
        *(*_HANDSHAKES, "serve", *map(str, files)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        bare_port = int(await process.stdout.readline())
        for _ in range(_TURNS):
            seen.bare.append(await _shake(bare_port, *map(str, files)))
            before = usage(daemon.pid)
            seen.shakes.append(await _shake(made.rpc_port, *map(str, files)))
            used_s = usage(daemon.pid).cpu_s - before.cpu_s
            seen.shake_cpu_ms.append(1000 * used_s / (seen.shakes[-1] * HANDSHAKES_S))
    finally:
        process.kill()
        await asyncio.shield(process.wait())


async def _shake(port: int, *files: str) -> float:
    """How many a second."""
    words = ("ask", str(port), str(HANDSHAKES_S), str(HANDSHAKES_AT_ONCE), *files)
    process = await asyncio.create_subprocess_exec(
        *(*_HANDSHAKES, *words), cwd=ROOT, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise BenchError("a handshake failed; it says above why")
    return float(output)


def _table(seen: _Seen, options: Options) -> Table:
    table = Table("link: the coordinator link")
    table.figures = [
        Figure(
            "a change known to the coordinator, p99",
            percentile(seen.known_ms, 99),
            "ms",
            baseline=percentile(seen.durable_ms, 99),
            baseline_is="durable",
            bound=Bound(300),
            note=f"{len(seen.known_ms)} changes; median {median(seen.known_ms):.0f} ms",
        ),
        Figure(
            "CPU at rest",
            median(seen.cpu_with),
            "% of a core",
            baseline=median(seen.cpu_without),
            baseline_is="without the link",
            bound=Bound(0.2, of="excess"),
        ),
        Figure(
            f"RPC at {RPC_PER_S}/s, p99",
            percentile(seen.rpc_ms, 99),
            "ms",
            baseline=percentile(seen.plain_ms, 99),
            baseline_is="in the clear",
            bound=Bound(10),
            note=f"{RPC_CONNECTIONS} kept connections; median {median(seen.rpc_ms):.1f} ms",
        ),
        Figure(
            "handshakes, each with one answer",
            median(seen.shakes),
            "/s",
            baseline=median(seen.bare),
            baseline_is="bare asyncio",
            bound=Bound(100, at_least=True),
            note=f"{median(seen.shake_cpu_ms):.1f} ms of the agent's CPU each",
        ),
        Figure(
            f"RSS with {PEERS} idle peers",
            seen.peers_open,
            "MiB",
            baseline=seen.peers_before,
            baseline_is="none",
            bound=Bound(16, of="excess"),
        ),
        Figure(
            "RSS at rest",
            median(seen.rss_with),
            "MiB",
            baseline=median(seen.rss_without),
            baseline_is="without the link",
        ),
    ]
    table.notes = [
        f"at rest: {_TURNS} windows of {options.seconds:.0f} s each, by turns, one enclave",
        f"the worst late start of a request was {seen.late_ms:.1f} ms (counted in the latencies)",
    ]
    return table
