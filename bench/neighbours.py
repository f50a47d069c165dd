"""Neighbours: what a guest that floods takes from the others, beside one that floods nobody.

The same sender writes the same frames into a tap on the guests' bridge, and into one that is on no
bridge: so what it costs to make them is in both, and what the host does with them in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from agent.config_limits import DEFAULT_LIMITS
from agent.enclaves.network import mac_of
from agent.enclaves.network_tap import TapNetwork
from agent.model.ids import EnclaveId
from agent.traffic.flow_limits_rules import refused_in
from agent.traffic.limits import limits_within
from bench.daemon import BenchError, Daemon, running
from bench.figures import Bound, Figure, Table, median, percentile
from bench.flood import Sent
from bench.flood import Spec as FloodSpec
from bench.generator import ask, generator
from bench.load import Spec as LoadSpec
from bench.load_process import load
from bench.options import Options
from bench.place import Place, free_ports
from bench.releases import TAGS
from bench.show import Show

NAMES = ("neighbour-a", "neighbour-b")
WAYS = ("isolated", "neighbour")
_ATTACKER = EnclaveId("floodera")
_PER_S = 20
_SLICE_S = 10.0
_SETTLE_S = 10
_LOOK_EVERY_S = 0.5


@dataclass
class Seen:
    """By way: latencies of the neighbour, frames a second; and what became of the flood."""

    latencies_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    frames_per_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: int = 0
    unhealthy: int = 0
    places: int = 0  # in the kernel's connection table, at most
    refused: dict[str, int] = field(default_factory=dict)


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Slices of both ways by turns."""
    if os.geteuid() != 0:
        raise BenchError("neighbours can only be measured as root: they are on taps")
    seen = Seen()
    # What the flood is sent to is a private network.
    network = {"mode": "tap", "guest_egress": "any"}
    async with running(
        place, network=network, traffic={"mode": "nftables"}, update={"soak_s": 5}
    ) as daemon:
        at = await _deploy(place, daemon)
        async with _attacker(place) as specs:
            await asyncio.sleep(_SETTLE_S)
            for number in range(options.rounds):
                for way in WAYS:
                    await _slice(daemon, at, specs[way], way, seen)
                show.line(_told(number, seen))
        seen.refused = _refused(place)
        health = await _health_events(daemon)
    if not seen.places:
        raise BenchError("nothing of the flood got through: there is nothing to state")
    return _table(seen, health, options)


async def _deploy(place: Place, daemon: Daemon) -> int:
    """Two deployments; returns where the first answers in the clear."""
    ports = []
    for name in NAMES:
        https, plain = free_ports(2)
        ports.append(plain)
        await daemon.want(
            "PUT", f"/v1/deployments/{name}", place.deployment(TAGS[0], https=https, plain=plain)
        )
    for name in NAMES:
        await daemon.finish(name)
    return ports[0]


@contextlib.asynccontextmanager
async def _attacker(place: Place) -> AsyncIterator[dict[str, FloodSpec]]:
    """A tap as the agent makes it for a guest, one on no bridge, and a world to send to."""
    guests, world = (ipaddress.ip_network(place.subnet(number)) for number in (0, 2))
    network = TapNetwork(place.bridge, str(guests), instance=str(place.state / "state"))
    address, isolated, outside = str(guests[250]), f"{place.bridge}i", f"{place.bridge}w"
    namespace = f"{place.namespace}-w"
    nic = await network.attach(_ATTACKER, address, ())
    try:
        _ip(f"netns add {namespace}")
        _ip(f"link add {outside} type veth peer name eth0 netns {namespace}")
        _ip(f"address add {world[1]}/24 dev {outside}")
        _ip(f"link set {outside} up")
        _ip(f"-n {namespace} address add {world[2]}/24 dev eth0")
        _ip(f"-n {namespace} link set eth0 up")
        _ip(f"tuntap add dev {isolated} mode tap")
        _ip(f"link set {isolated} up")
        bridge = json.loads(_ip(f"-j link show dev {place.bridge}"))[0]["address"]
        yield {
            way: FloodSpec(
                link=link,
                mac=mac_of(address),
                address=address,
                host_mac=bridge,
                target=str(world[2]),
            )
            for way, link in (("neighbour", nic.name), ("isolated", isolated))
        }
    finally:
        for words in (f"netns delete {namespace}", f"link delete {isolated}"):
            subprocess.run(["ip", *words.split()], check=False, capture_output=True)
        await asyncio.shield(network.detach(_ATTACKER))


async def _slice(daemon: Daemon, port: int, spec: FloodSpec, way: str, seen: Seen) -> None:
    wanted = LoadSpec(
        address="127.0.0.1", plain_port=port, https_port=port, rate=_PER_S, tls_every=0
    )
    async with generator("flood", spec) as flood, load(wanted) as process:
        loop = asyncio.get_running_loop()
        end = loop.time() + _SLICE_S
        while loop.time() < end:
            await asyncio.sleep(_LOOK_EVERY_S)
            await _look(daemon, spec, way, seen)
        counts = await process.stop()
        sent = await ask(flood, b"tell\n", Sent)
    seen.latencies_s[way] += counts.latencies_s
    seen.frames_per_s[way].append(sent.frames / sent.elapsed_s)
    seen.failed += counts.failed + counts.reset


async def _look(daemon: Daemon, spec: FloodSpec, way: str, seen: Seen) -> None:
    enclaves = (await daemon.want("GET", "/v1/enclaves"))["enclaves"]
    seen.unhealthy += sum(one["healthy"] is not True for one in enclaves)
    if way == "neighbour":
        argv = ["conntrack", "-L", "-s", spec.address]
        listed = await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=True)
        seen.places = max(seen.places, listed.stdout.count(b"\n"))


def _share() -> int:
    """What a guest may have of it by default."""
    capacity = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    return limits_within(DEFAULT_LIMITS, capacity).guest_flows


def _refused(place: Place) -> dict[str, int]:
    argv = ["nft", "-j", "list", "set", "inet", f"limits_{place.table}", "refused"]
    listed = subprocess.run(argv, capture_output=True, check=True)
    guests = ipaddress.ip_network(place.subnet(0))
    return refused_in(listed.stdout).get(str(guests[250]), {})


async def _health_events(daemon: Daemon) -> int:
    """Times that somebody's health changed after it was first good."""
    count, after = 0, 0
    while events := (await daemon.want("GET", f"/v1/events?after={after}"))["events"]:
        after = events[-1]["sequence"]
        count += sum(event["kind"] == "health" for event in events)
    return count


def _told(number: int, seen: Seen) -> str:
    p99s = (f"{way} {percentile(seen.latencies_s[way], 99) * 1000:.0f} ms" for way in WAYS)
    rate = median(seen.frames_per_s["neighbour"])
    return f"round {number + 1}: p99 {', '.join(p99s)}; {rate:.0f} frames/s"


def _table(seen: Seen, health: int, options: Options) -> Table:
    table = Table("neighbours: beside a guest that sends 20,000 UDP flows at 50,000 frames/s")
    ours, base = (seen.latencies_s[way] for way in ("neighbour", "isolated"))
    table.figures = [
        Figure(
            "a neighbour's request answered, p99",
            percentile(ours, 99) * 1000,
            "ms",
            baseline=percentile(base, 99) * 1000,
            baseline_is="isolated",
            bound=Bound(2, of="ratio"),
        ),
        Figure(
            "the same, median",
            median(ours) * 1000,
            "ms",
            baseline=median(base) * 1000,
            baseline_is="isolated",
        ),
        Figure("requests failed", seen.failed, "", bound=Bound(0), loss=True),
        Figure("looks at an enclave that was not healthy", seen.unhealthy, "", bound=Bound(0)),
        Figure("changes of anybody's health", health, "", bound=Bound(0)),
        Figure(
            "frames that the tap took",
            median(seen.frames_per_s["neighbour"]),
            "/s",
            baseline=median(seen.frames_per_s["isolated"]),
            baseline_is="isolated",
        ),
        Figure(
            "its places in the kernel's connection table, at most",
            seen.places,
            "",
            bound=Bound(_share()),
        ),
    ]
    table.notes = [
        f"{options.rounds} slices of {_SLICE_S:.0f} s each way, {_PER_S} requests/s",
        f"refused of the flood: {json.dumps(seen.refused)}",
    ]
    return table


def _ip(words: str) -> str:
    done = subprocess.run(["ip", *words.split()], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"ip {words}: {done.stderr.strip()}")
    return done.stdout
