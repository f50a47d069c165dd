"""Where a data plane is put to the test: two guests, blue and green, and a backend before them.

A backend joins the contract suite by a World of its own and an entry in `WORLDS`.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.port import Binding, RouteOrder, Traffic
from agent.traffic.userspace import UserspaceTraffic
from tests.fakes.netns import Server, ip, join, own_host

PORTS = (4430, 4431)
BRIDGE = "trtbr0"
SUBNET = "10.99.7.0/24"
GATEWAY = "10.99.7.1"
OUTSIDE = "192.0.2.1"  # the host's address on the clients' side
CLIENT = "192.0.2.2"
_REPOSITORY = Path(__file__).parents[2]


class World(Protocol):
    """Two guests and the way to a backend before them."""

    def traffic(self) -> Traffic:
        """A new instance, as a new agent makes it; not started."""
        ...

    def endpoint(self, guest: str, number: int = 0) -> Endpoint: ...

    def apply_and_die(self, order: RouteOrder) -> Iterator[None]:
        """One kill -9 of an applying process at each point that can be told apart from outside."""
        ...

    async def clean(self) -> None: ...


def order(
    generation: int,
    *bindings: tuple[Listen, Endpoint | None],
    deployment: str = "hello",
    domain: str | None = None,
) -> RouteOrder:
    return RouteOrder(
        deployment=DeploymentName(deployment),
        generation=generation,
        bindings=tuple(
            Binding(listen=listen, endpoints=(endpoint,) if endpoint else ())
            for listen, endpoint in bindings
        ),
        domain=domain,
    )


def free_listen(address: str = "127.0.0.1") -> Listen:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return Listen(address=address, port=probe.getsockname()[1])


class UserspaceWorld:
    """Guests as QEMU's user-mode network shows them: on loopback addresses."""

    def __init__(self, directory: Path, servers: dict[str, Server]) -> None:
        self.directory = directory
        self.socket = directory / "traffic.sock"
        self._servers = servers

    def traffic(self) -> UserspaceTraffic:
        return UserspaceTraffic(
            self.socket, self.directory / "routes.json", self.directory / "traffic.log"
        )

    def endpoint(self, guest: str, number: int = 0) -> Endpoint:
        return Endpoint(address=self._servers[guest].address, port=PORTS[number])

    def apply_and_die(self, order: RouteOrder) -> Iterator[None]:
        """The agent may die with the request half written, and with all of it.

        Its end of the connection ends, and what it asked for is waited for.
        """
        request = b'{"op":"apply","order":' + msgspec.json.encode(order) + b"}\n"
        for part in (request[:-20], request[:-1], request):
            with socket.socket(socket.AF_UNIX) as agent:
                agent.connect(str(self.socket))
                agent.sendall(part)
                agent.shutdown(socket.SHUT_WR)
                while agent.recv(4096):
                    pass
            yield

    async def clean(self) -> None:
        await self.traffic().shutdown()


class NftablesWorld:
    """Guests in namespaces on a bridge; this thread's namespace is the host."""

    kind = "nftables"

    def __init__(self, directory: Path, servers: dict[str, Server]) -> None:
        self.directory = directory
        self.state_file = directory / "sysctls.json"
        self.servers = servers

    def traffic(self, host_ports: tuple[int, ...] = ()) -> NftablesTraffic:
        return NftablesTraffic(BRIDGE, SUBNET, host_ports, state_file=self.state_file)

    def endpoint(self, guest: str, number: int = 0) -> Endpoint:
        return Endpoint(address=self.servers[guest].address, port=PORTS[number])

    def apply_and_die(self, order: RouteOrder) -> Iterator[None]:
        """The agent may die before and after each command that it gives."""
        return _die_at_each_step(self.kind, self.state_file, order)

    async def clean(self) -> None:
        """Everything is in namespaces that end with the test."""


class HaproxyWorld:
    """Guests on loopback addresses, behind a HAProxy of the test's own."""

    kind = "haproxy"

    def __init__(self, directory: Path, servers: dict[str, Server]) -> None:
        self.directory = directory
        self.run_dir = directory / "haproxy"
        self.state_file = directory / "haproxy.json"
        self._servers = servers

    def traffic(self) -> HaproxyTraffic:
        return HaproxyTraffic(self.run_dir, self.state_file)

    def endpoint(self, guest: str, number: int = 0) -> Endpoint:
        return Endpoint(address=self._servers[guest].address, port=PORTS[number])

    def apply_and_die(self, order: RouteOrder) -> Iterator[None]:
        """The agent may die before and after each thing that it asks of HAProxy."""
        return _die_at_each_step(self.kind, self.directory, order)

    async def clean(self) -> None:
        await self.traffic().shutdown()


def _die_at_each_step(kind: str, path: Path, order: RouteOrder) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.traffic.dying_agent", kind]
    arguments = [str(path), msgspec.json.encode(order).decode()]
    for step in range(100):
        argv = [*command, str(step), *arguments]
        ended = subprocess.run(argv, check=False, cwd=_REPOSITORY)
        yield
        if ended.returncode == 0:
            return
        assert ended.returncode == -9, ended
    raise AssertionError("an order takes less than 50 commands")


@contextlib.contextmanager
def userspace_world(directory: Path) -> Iterator[UserspaceWorld]:
    with _loopback_guests("127.99.7") as servers:
        yield UserspaceWorld(directory, servers)


@contextlib.contextmanager
def haproxy_world(directory: Path) -> Iterator[HaproxyWorld]:
    with _loopback_guests("127.99.8") as servers:
        yield HaproxyWorld(directory, servers)


@contextlib.contextmanager
def _loopback_guests(net: str) -> Iterator[dict[str, Server]]:
    addresses = {"blue": f"{net}.2", "green": f"{net}.3"}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, address in addresses.items():
            servers[name] = Server(name, address, PORTS, netns=False)
            stack.callback(servers[name].stop)
            servers[name].listen()
        yield servers


@contextlib.contextmanager
def nftables_world(directory: Path) -> Iterator[NftablesWorld]:
    addresses = {"blue": "10.99.7.2", "green": "10.99.7.3"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_host())
        ip(f"link add {BRIDGE} type bridge")
        ip(f"addr add {GATEWAY}/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        servers = {}
        for name, address in addresses.items():
            servers[name] = Server(name, address, PORTS, netns=True)
            stack.callback(servers[name].stop)
            join(servers[name].pid, link=f"trt{name}", address=f"{address}/24", gateway=GATEWAY)
            ip(f"link set trt{name} master {BRIDGE}")
            servers[name].listen()
        yield NftablesWorld(directory, servers)


WORLDS = {
    "userspace": userspace_world,
    "nftables": nftables_world,
    "haproxy": haproxy_world,
}
NEED_ROOT = ("nftables",)
