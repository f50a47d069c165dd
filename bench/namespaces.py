"""Two network namespaces: a native server, and a client out in the world.

The server has a link on the guests' bridge, where the host reaches it as it reaches a guest, and a
routed one, on which a client from outside may also go straight to it: to a guest it may not.
Everything made here is named after the bench and goes with the block, also the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agent.enclaves.network_tap import TapNetwork
from bench.daemon import BenchError
from bench.place import ROOT, Place

_NATIVE = (sys.executable, "-m", "bench.native")


class Client:
    """A client's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, role: str, address: str, port: int, seconds: float) -> float:
        """What it measured. Raises BenchError if it got no answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{role} {address} {port} {seconds}\n".encode())
        answer = (await self._process.stdout.readline()).decode()
        try:
            return float(answer)
        except ValueError:
            raise BenchError(f"the client got no answer: {answer}") from None


@dataclass(frozen=True)
class Spot:
    """Where a client is: how it goes straight to the server, and what the host is to it."""

    name: str
    client: Client
    server: str
    host: str


@contextlib.asynccontextmanager
async def yard(place: Place) -> AsyncIterator[tuple[Spot, Spot]]:
    """Bridge, namespaces and server: a client outside and one on the host. Needs root."""
    network = TapNetwork(place.bridge, place.subnet(0), instance=str(place.state / "state"))
    guests, world, routed = (ipaddress.ip_network(place.subnet(n)) for n in (0, 2, 3))
    server, client = names = (f"{place.namespace}-s", f"{place.namespace}-c")
    await network.start()
    try:
        _remove(names)
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        on_bridge = f"{place.bridge}s"
        _link(on_bridge, server, f"{guests[2]}/24")
        _link(f"{place.bridge}w", server, f"{routed[2]}/24", f"{routed[1]}/24")
        _link(f"{place.bridge}c", client, f"{world[2]}/24", f"{world[1]}/24")
        _ip("link", "set", f"{on_bridge}0", "master", place.bridge)
        _ip("-n", server, "route", "add", str(world), "via", str(routed[1]))
        _ip("-n", client, "route", "add", "default", "via", str(world[1]))
        enter = ("ip", "netns", "exec")
        async with (
            _process(*enter, server, *_NATIVE, "serve") as serving,
            _process(*enter, client, *_NATIVE, "ask") as outside,
            _process(*_NATIVE, "ask") as inside,
        ):
            assert serving.stdout is not None
            if await serving.stdout.readline() != b"ready\n":
                raise BenchError("the native server did not start")
            yield (
                Spot("from outside", Client(outside), str(routed[2]), str(world[1])),
                Spot("from the host by 127.0.0.1", Client(inside), str(guests[2]), "127.0.0.1"),
            )
    finally:
        _remove(names)
        await asyncio.shield(network.restore())


def _link(name: str, namespace: str, inner: str, outer: str | None = None) -> None:
    """A pair: NAME0 on the host, NAME1 in the namespace."""
    _ip("link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1", "netns", namespace)
    if outer is not None:
        _ip("address", "add", outer, "dev", f"{name}0")
    _ip("link", "set", f"{name}0", "up")
    _ip("-n", namespace, "address", "add", inner, "dev", f"{name}1")
    _ip("-n", namespace, "link", "set", f"{name}1", "up")


def _remove(names: tuple[str, ...]) -> None:
    """Links go with their namespaces."""
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.asynccontextmanager
async def _process(*argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.shield(process.wait())
