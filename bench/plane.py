"""The data plane against a native server in a namespace: throughput, latency, connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.port import Binding, RouteOrder
from agent.traffic.userspace import UserspaceTraffic
from bench.daemon import BenchError, sweep
from bench.figures import Bound, Figure, Table, median
from bench.namespaces import Spot, yard
from bench.native import BULK, CONNECTS, TURNS
from bench.options import Options
from bench.place import Place
from bench.processes import pids_with, rss_mib, usage
from bench.show import Show

PORTS = (BULK, TURNS, CONNECTS)
_ROLES = {"bulk": (BULK, 0.5), "turns": (TURNS, 0.3), "connects": (CONNECTS, 0.7)}
_SLICES = 3  # of each way, a round
_USERSPACE_OFFSET = 200
_NFT_OFFSET = 100

# With the agent's table in the kernel, as on a host that runs it: straight to the server, and
# through the listener. Without it: the same two for the userspace data plane.
WAYS = (("tracked", True), ("nftables", True), ("bare", False), ("userspace", False))
Measured = dict[tuple[str, str, str], list[float]]  # role, spot, way


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Short slices of every way by turns; ratios are medians of the slices' own."""
    if os.geteuid() != 0:
        raise BenchError("the data plane can only be measured as root: it needs namespaces")
    await sweep(place)
    place.make()
    place.write_config()
    try:
        async with yard(place) as spots, _planes(place, spots) as planes:
            measured: Measured = defaultdict(list)
            for number in range(options.rounds):
                for _ in range(_SLICES):
                    await _slice(spots, planes, measured)
                show.line(_told(number, spots, measured))
            names = [spot.name for spot in spots]
            proxy = _proxy_note(place)
    finally:
        await asyncio.shield(sweep(place))
    table = Table("plane: to a native server in a namespace")
    table.figures = [figure for name in names for figure in _figures(measured, name)]
    table.notes = [
        "direct: straight to the server, with the agent's table in force (nftables) or without "
        "it (userspace); untracked: straight to the server, no table and so no connection "
        "tracking in the kernel at all",
        f"{options.rounds * _SLICES} slices of each; throughput and round trips on one "
        "connection, connections/s with 16 under way: the client's and the server's own Python "
        "bounds those",
        *proxy,
    ]
    return table


class Planes:
    """Both data planes, of which nftables is in the kernel only while it is measured."""

    def __init__(self, place: Place, spots: tuple[Spot, ...]) -> None:
        self._table = place.table
        self._spots = spots
        self._nftables = NftablesTraffic(
            place.bridge,
            place.subnet(0),
            (),
            state_file=place.state / "state" / "sysctls.json",
            table=place.table,
        )
        self._userspace = UserspaceTraffic(
            socket=place.run / "traffic.sock",
            state_file=place.state / "state" / "traffic.json",
            log_file=place.state / "traffic.log",
        )

    async def start(self) -> None:
        await self._userspace.start()
        await self._userspace.apply(self._order(_USERSPACE_OFFSET))
        await self._nftables.start()  # also turns forwarding on, which every way needs

    async def stop(self) -> None:
        await self._userspace.shutdown()
        await self._nftables.restore()

    async def put(self, *, table: bool) -> None:
        """The agent's table with its routes, or none."""
        if table:
            await self._nftables.start()
            await self._nftables.apply(self._order(_NFT_OFFSET))
        else:
            tables = (f"inet {self._table}", f"inet limits_{self._table}")
            delete = "; ".join(f"add table {one}; delete table {one}" for one in tables)
            subprocess.run(["nft", delete], check=True)

    def where(self, spot: Spot, way: str, port: int) -> tuple[str, int]:
        """What a client there dials."""
        if way == "nftables":
            return spot.host, port + _NFT_OFFSET
        return (spot.host, port + _USERSPACE_OFFSET) if way == "userspace" else (spot.server, port)

    def _order(self, offset: int) -> RouteOrder:
        return RouteOrder(
            deployment=DeploymentName("plane"),
            generation=1,
            bindings=tuple(
                Binding(
                    listen=Listen(address=spot.host, port=port + offset),
                    endpoints=(Endpoint(address=spot.server, port=port),),
                )
                for spot in self._spots
                for port in PORTS
            ),
            domain=None,
        )


@contextlib.asynccontextmanager
async def _planes(place: Place, spots: tuple[Spot, ...]) -> AsyncIterator[Planes]:
    planes = Planes(place, spots)
    try:
        await planes.start()
        yield planes
    finally:
        await asyncio.shield(planes.stop())


async def _slice(spots: tuple[Spot, ...], planes: Planes, measured: Measured) -> None:
    """A short moment of every way; those that are compared next to each other."""
    for table in (True, False):
        await planes.put(table=table)
        ways = [way for way, with_table in WAYS if with_table is table]
        for spot in spots:
            for role, (port, seconds) in _ROLES.items():
                for way in ways:
                    address, at = planes.where(spot, way, port)
                    value = await spot.client.ask(role, address, at, seconds)
                    measured[role, spot.name, way].append(value)


def _told(number: int, spots: tuple[Spot, ...], measured: Measured) -> str:
    now = [
        f"{way} {median(measured['bulk', spots[0].name, way][-_SLICES:]) / 1e9:.1f}"
        for way, _ in WAYS
    ]
    return f"round {number + 1}: {', '.join(now)} Gbit/s"


def _figures(measured: Measured, spot: str) -> list[Figure]:
    def through(way: str, role: str, direct: str, **more: Any) -> Figure:
        unit, scale, what = _UNITS[role]
        ours, base = measured[role, spot, way], measured[role, spot, direct]
        return Figure(
            f"{way}, {spot}: {what}",
            median(ours) * scale,
            unit,
            baseline=median(base) * scale,
            baseline_is="untracked" if (way, direct) == ("nftables", "bare") else "direct",
            paired_ratio=median([a / b for a, b in zip(ours, base, strict=True)]),
            **more,
        )

    def added(way: str, direct: str) -> Figure:
        ours, base = measured["turns", spot, way], measured["turns", spot, direct]
        extra = median([a - b for a, b in zip(ours, base, strict=True)])
        return Figure(f"{way}, {spot}: latency added to a round trip", extra * 1e6, "µs")

    bound = Bound(0.95, of="ratio", at_least=True)
    return [
        through("nftables", "bulk", "tracked", bound=bound),
        through("nftables", "bulk", "bare"),
        through("nftables", "connects", "tracked"),
        added("nftables", "tracked"),
        through("userspace", "bulk", "bare"),
        through("userspace", "connects", "bare"),
        added("userspace", "bare"),
    ]


_UNITS = {"bulk": ("Gbit/s", 1e-9, "throughput"), "connects": ("/s", 1.0, "connections/s")}


def _proxy_note(place: Place) -> list[str]:
    return [
        f"traffic proxy: RSS {rss_mib(pid):.0f} MiB, {usage(pid).cpu_s:.1f} s of CPU in all"
        for pid in pids_with(str(place.run / "traffic.sock"))
    ]
