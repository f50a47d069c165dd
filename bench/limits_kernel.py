"""What a full connection table and many open connections cost, in a network namespace of its own.

Run as a program (`unshare --net python -m bench.limits_kernel DIRECTORY`); prints its figures as
JSON. The guest is a server in a namespace behind the agent's own nftables data plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from agent.host.conntrack_netlink import DST_NAT, SEEN_REPLY, told
from agent.host.netlink import NETFILTER, asked
from agent.model.enclave import Endpoint
from agent.model.resources import Listen
from agent.traffic.conntrack import KernelConnections
from agent.traffic.nftables import NftablesTraffic
from bench.figures import median
from simulator.connection_table import fill
from tests.traffic.worlds import free_listen, nftables_world, order

FEW, MANY = 2_000, 200_000  # entries of others in the table
SOME, LOTS = 500, 5_000  # open connections
_OPEN = 50  # of ours while the table fills
_LOOKS = 11
_AT_ONCE = 100
T = TypeVar("T")
_EVERYTHING = 1 << 8 | 1, bytes([socket.AF_INET, 0, 0, 0])  # a listing without a filter


async def main(directory: Path) -> dict[str, float]:
    """The figures by name: milliseconds, bytes, counts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: dict[str, float] = {}
    with nftables_world(directory) as world:
        traffic, endpoint, listen = world.traffic(), world.endpoint("blue"), free_listen()
        await traffic.start()
        await traffic.apply(order(1, (listen, endpoint)))
        for number in (SOME, LOTS):
            for name, value in (await _open(traffic, endpoint, listen, number)).items():
                found[f"{name} {number}"] = value
        clients = await _connect(listen, _OPEN)
        there = 0
        for number in (FEW, MANY):
            fill(number - there)
            there = number
            for name, value in (await _with_others(endpoint)).items():
                found[f"{name} {number}"] = value
        for client in clients:
            client.close()
        await traffic.close()
    return found


async def _open(
    traffic: NftablesTraffic, endpoint: Endpoint, listen: Listen, number: int
) -> dict[str, float]:
    """Counted by their endpoint, then reset: each client must see that."""
    clients = await _connect(listen, number)
    try:
        counts, count_ms, _ = await _timed(lambda: traffic.connections(endpoint))
        began = time.perf_counter()
        reset = await traffic.reset(endpoint)
        reset_ms = (time.perf_counter() - began) * 1e3
        unsaid = sum(not _was_reset(client) for client in clients)
    finally:
        for client in clients:
            client.close()
    return {
        "count ms": count_ms,
        "reset ms": reset_ms,
        "miscounted": abs(counts - number) + abs(reset - number),
        "not reset": unsaid,
    }


async def _with_others(endpoint: Endpoint) -> dict[str, float]:
    """What a count of ours takes while others' entries fill the table."""
    connections = KernelConnections()
    flows, took_ms, user_ms = await _timed(lambda: connections.flows_to(endpoint))
    crossed = sum(map(len, told(DST_NAT | SEEN_REPLY, (endpoint.address, endpoint.port))))
    began = time.perf_counter()
    whole = sum(len(body) for _, body in asked(NETFILTER, *_EVERYTHING))
    whole_ms = (time.perf_counter() - began) * 1e3
    return {
        "found": len(flows),
        "took ms": took_ms,
        "user ms": user_ms,
        "bytes": crossed,
        "whole bytes": whole,
        "whole ms": whole_ms,
    }


async def _timed(ask: Callable[[], Awaitable[T]]) -> tuple[T, float, float]:
    """The last answer; medians of the time, and of the part that was not the kernel's."""
    took, own = [], []
    for _ in range(_LOOKS):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter()
        answer = await ask()
        took.append((time.perf_counter() - began) * 1e3)
        own.append((resource.getrusage(resource.RUSAGE_SELF).ru_utime - before) * 1e3)
    return answer, median(took), median(own)


async def _connect(listen: Listen, number: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()

    async def one() -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        await loop.sock_connect(client, (listen.address, listen.port))
        return client

    made: list[socket.socket] = []
    while len(made) < number:
        batch = min(_AT_ONCE, number - len(made))
        made += await asyncio.gather(*(one() for _ in range(batch)))
    return made


def _was_reset(client: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        try:
            client.recv(1)
        except ConnectionResetError:
            return True
    return False


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
