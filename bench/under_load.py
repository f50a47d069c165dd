"""Update after update under load: what the suites on blue-green updates have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from agent.enclaves.host_ports import FIRST_HOST_PORT
from agent.model.resources import GUEST_HTTPS_PORT
from bench.bare_nft import BareNft, bare_nft
from bench.daemon import BenchError, Daemon, running
from bench.figures import median
from bench.launch import executions, moment
from bench.load import Counts, Spec
from bench.load_process import LoadProcess, load
from bench.options import Options
from bench.place import Place
from bench.processes import pids_with, rss_mib
from bench.releases import TAGS
from bench.show import Show

NAME = "bench"
MODES = {
    "nftables": ("tap", "nftables"),
    "userspace": ("tap", "userspace"),
    "haproxy": ("tap", "haproxy"),
    "user-network": ("user", "userspace"),
}
BACKENDS = tuple(MODES)
PLAIN_PORT = 8080
STREAMS = 20
STREAM_S = 20.0
TLS_EVERY = 16
SATURATE_S = 12.0
BARE_EACH = 3
_PROXY = {"userspace": "traffic.sock", "haproxy": "haproxy/"}  # what marks its processes


def usable(backends: tuple[str, ...]) -> tuple[str, ...]:
    """Of these, those that this user may have."""
    return backends if os.geteuid() == 0 else ("user-network",)


@dataclass(frozen=True)
class Direct:
    """What the guest answers when it is asked directly, by as many as it can take."""

    plain_per_s: float
    tls_per_s: float
    counts: Counts

    @property
    def per_s(self) -> float:
        return self.plain_per_s + self.tls_per_s


@dataclass
class Seen:
    """What a run of updates left to be judged."""

    direct: Direct
    rate: float
    stream_s: float
    counts: Counts = field(default_factory=Counts)
    switches_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    execs_s: list[float] = field(default_factory=list)
    reset_by_agent: int = 0
    wrong_side: int = 0
    flushed: bool = False
    proxies_mib: list[float] = field(default_factory=list)


async def update_under_load(
    place: Place,
    options: Options,
    show: Show,
    backend: str,
    updates: int,
    *,
    stream_s: float = STREAM_S,
) -> Seen:
    """So many updates with one backend, at half of what the guest answers directly.

    Every drain waits for the streams that are open at the switch: `stream_s` is most of a run.
    """
    network, traffic = MODES[backend]
    async with (
        running(
            place,
            network={"mode": network},
            traffic={"mode": traffic},
            update={"dwell_s": 2, "soak_s": 2, "drain_s": 3 * stream_s, "stop_grace_s": 5},
        ) as daemon,
        _baseline(place) as bare,
    ):
        await daemon.want("PUT", f"/v1/deployments/{NAME}", place.deployment(TAGS[0]))
        await daemon.finish(NAME)
        direct = await _saturate(await _direct(daemon, network, stream_s))
        seen = Seen(direct, direct.per_s / 2, stream_s)
        show.line(
            f"{backend}: asked directly the guest answers {direct.per_s:.0f} new connections/s "
            f"(every {TLS_EVERY}th over TLS); the load is {seen.rate:.0f}/s"
        )
        async with load(_through(place, seen)) as process:
            for number in range(1, updates + 1):
                if options.prove_red and number == 1 + updates // 2:
                    await _flush(place, seen, show)
                await _update(place, daemon, process, bare, seen, TAGS[number % len(TAGS)])
                show.line(_told(number, seen))
            show.line("no new requests; waiting for the open streams to end")
            seen.counts = _accounted(await process.stop())
        if traffic in _PROXY:
            pids = pids_with(str(place.run / _PROXY[traffic]))
            seen.proxies_mib = [rss_mib(pid) for pid in pids]
    return seen


def _through(place: Place, seen: Seen) -> Spec:
    """The load through the data plane."""
    return Spec(
        address="127.0.0.1",
        plain_port=place.plain_port,
        https_port=place.https_port,
        rate=seen.rate,
        tls_every=TLS_EVERY,
        streams=STREAMS,
        stream_s=seen.stream_s,
    )


@contextlib.asynccontextmanager
async def _baseline(place: Place) -> AsyncIterator[BareNft | None]:
    """None for a user who may not use nft."""
    if os.geteuid() != 0:
        yield None
        return
    async with bare_nft(place.scratch_table) as bare:
        yield bare


async def _direct(daemon: Daemon, network: str, stream_s: float) -> Spec:
    """The guest itself, past the data plane, asked by as many as it answers best."""
    (enclave,) = (await daemon.deployment(NAME))["enclaves"]
    if network == "tap":
        ports = (PLAIN_PORT, GUEST_HTTPS_PORT)
    else:  # the network forwards the sorted ports of the guest
        ports = (FIRST_HOST_PORT + 1, FIRST_HOST_PORT)
    return Spec(
        address=enclave["address"],
        plain_port=ports[0],
        https_port=ports[1],
        tls_every=TLS_EVERY,
        streams=STREAMS,
        stream_s=stream_s,
        spread_s=1,
    )


async def _saturate(spec: Spec) -> Direct:
    """Closed loop for a while, beside as many streams as there will be."""
    async with load(spec) as process:
        await asyncio.sleep(2)
        before = await process.tell()
        await asyncio.sleep(SATURATE_S)
        after = await process.tell()
        whole = await process.stop()
    elapsed_s = after.elapsed_s - before.elapsed_s
    return Direct(
        plain_per_s=(after.plain - before.plain) / elapsed_s,
        tls_per_s=(after.tls - before.tls) / elapsed_s,
        counts=whole,
    )


async def _update(
    place: Place,
    daemon: Daemon,
    process: LoadProcess,
    bare: BareNft | None,
    seen: Seen,
    tag: str,
) -> None:
    """One update, and what it and the load's counts so far say."""
    (old,) = (await daemon.deployment(NAME))["enclaves"]
    started = len(executions(place))
    body = {"tag": tag, "strategy": "blue_green"}
    await daemon.want("POST", f"/v1/deployments/{NAME}/updates", body)
    await _until_switched(daemon)
    if bare is not None:
        seen.bare_s += await bare.times(BARE_EACH)
    update = await daemon.finish(NAME)
    switched = moment(update["switched_at"])
    decided = moment(await daemon.decided_at(update))
    execs = executions(place)[started:]
    if len(execs) != 1:
        raise BenchError(f"an update made QEMU start {len(execs)} times")
    seen.execs_s.append(execs[0] - moment(update["created_at"]))
    seen.switches_s.append(switched - decided)
    seen.reset_by_agent += update["reset_connections"]
    seen.counts = await process.tell()
    seen.wrong_side += seen.counts.last_asked.get(old["id"], 0) > switched


async def _until_switched(daemon: Daemon) -> None:
    """Seldom asked: what is measured comes from the agent's own record."""
    while True:
        update = (await daemon.deployment(NAME))["update"]
        if update["switched_at"] is not None:
            return
        if update["finished_at"] is not None:
            raise BenchError(f"the update is {update['status']}: {update['error']}")
        await asyncio.sleep(0.5)


async def _flush(place: Place, seen: Seen, show: Show) -> None:
    """What must turn the table red: for a moment nothing leads to the guests."""
    subprocess.run(["nft", "flush", "map", "inet", place.table, "exact"], check=True)
    seen.flushed = True
    show.line("the data plane's map was flushed by hand")
    await asyncio.sleep(2)


def _accounted(counts: Counts) -> Counts:
    """Every request that was begun ended in one of the known ways, or there is no result."""
    ended = counts.plain + counts.tls + counts.failed + counts.reset
    if ended != counts.begun:
        raise BenchError(f"of {counts.begun} requests the load can account for {ended}")
    return counts


def _told(number: int, seen: Seen) -> str:
    counts = seen.counts
    why = ", ".join(f"{n} × {text}" for text, n in counts.why.items())
    bare = f", bare {median(seen.bare_s[-BARE_EACH:]) * 1000:.0f} ms" if seen.bare_s else ""
    return (
        f"update {number}: switched {seen.switches_s[-1] * 1000:.0f} ms after the decision{bare}; "
        f"{counts.begun} requests, {counts.failed} failed, {counts.reset} reset; "
        f"{counts.streams_ended} streams, {counts.streams_failed} failed, "
        f"{counts.streams_reset} reset{'; ' + why if why else ''}"
    )
