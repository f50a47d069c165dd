"""A place outside the host's own stack from which its listeners are reached as by a client.

A network namespace with one link (veth), whose other end is the host's. What is opened in it comes
in by that end, is translated, routed and filtered like what comes in by any other link, and is
answered the same way. Namespace and link end with this process, however it ends; what somebody
else took from them is made anew, all of it. The addresses are a /30 that no route of the host
leads to, and the host's end forwards whether the host does or not, for nobody but this place.

Source: veth(4), ip-link(8), the kernel's ip-sysctl documentation.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

from agent.errors import AgentError
from agent.host.commands import CommandError, RunCommand, run_command
from agent.host.network_namespace import Namespace, NetworkNamespace
from agent.host.networks import routed_networks

_THERE = "outside"  # the end in the namespace
_FORWARDING = Path("/proc/sys/net/ipv4/conf")
_IPV6 = Path("/proc/sys/net/ipv6/conf")
_SIOCGIFFLAGS, _SIOCGIFADDR, _IFF_UP = 0x8913, 0x8915, 1
_IFREQ = struct.Struct("16s24x")
# Out of the corners of private space, the least used first.
_POOLS = ("172.31.252.0/22", "10.255.252.0/22", "192.168.252.0/22", "172.16.0.0/22")


Create = Callable[[], Awaitable[Namespace]]


class OutsideLinkError(AgentError):
    """This host has no such place now. The text says why."""

    @property
    def code(self) -> str:
        return "outside_unavailable"


def free_pair(taken: Iterable[IPv4Network]) -> IPv4Network | None:
    """A /30 that overlaps none of them; None if there is none left. Pure."""
    known = tuple(taken)
    return next((one for one in _pairs() if not any(map(one.overlaps, known))), None)


def _pairs() -> Iterator[IPv4Network]:
    for pool in _POOLS:
        yield from reversed(list(IPv4Network(pool).subnets(new_prefix=30)))


class OutsideLink:
    """`name`: of the host's end. `avoid`: networks that are kept free besides those in use.

    `create`: who makes the namespace.
    """

    def __init__(
        self,
        name: str,
        *,
        avoid: Iterable[str] = (),
        run: RunCommand = run_command,
        taken: Callable[[], Iterable[IPv4Network]] = routed_networks,
        create: Create = NetworkNamespace.create,
    ) -> None:
        self.name = name
        self._avoid = tuple(map(IPv4Network, avoid))
        self._run = run
        self._taken = taken
        self._create = create
        self._namespace: Namespace | None = None
        self._index = 0
        self._pair: IPv4Network | None = None

    @property
    def host_address(self) -> str:
        """The host's address on it, while it is there."""
        assert self._pair is not None
        return str(self._pair[1])

    async def have(self) -> None:
        """Have it there and whole. Cheap while it is. Raises OutsideLinkError."""
        try:
            if self._is_whole():
                return
            await self._remove()
            await self._make()
        except (OSError, CommandError) as error:
            self.close()
            raise OutsideLinkError(f"no namespace with a link can be made: {error}") from error
        except BaseException:
            self.close()
            raise

    async def sockets(self, number: int) -> list[socket.socket]:
        """See Namespace; to be asked after `have`."""
        assert self._namespace is not None
        return await self._namespace.sockets(number)

    def close(self) -> None:
        """The kernel takes all of it away. Idempotent."""
        if self._namespace is not None:
            self._namespace.close()
        self._namespace, self._pair, self._index = None, None, 0

    def _is_whole(self) -> bool:
        """As far as others can change it by the host's end. Forwarding is put back in passing."""
        if self._namespace is None or self._pair is None:
            return False
        try:
            if socket.if_nametoindex(self.name) != self._index:
                return False
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                request = _IFREQ.pack(self.name.encode())
                told = fcntl.ioctl(asking, _SIOCGIFFLAGS, request)
                address = fcntl.ioctl(asking, _SIOCGIFADDR, request)
        except OSError:
            return False
        (flags,) = struct.unpack_from("=H", told, 16)
        has_address = socket.inet_ntoa(address[20:24]) == self.host_address
        if not (flags & _IFF_UP and has_address):
            return False
        self._have_forwarding()
        return True

    def _have_forwarding(self) -> None:
        switch = _FORWARDING / self.name / "forwarding"
        if switch.read_text().strip() != "1":
            switch.write_text("1")

    async def _remove(self) -> None:
        """Of a link of ours nothing is left when its name is to be taken again."""
        if self._namespace is None:
            return
        if self._index and _index_of(self.name) == self._index:
            await self._run(["ip", "link", "delete", "dev", self.name])
        self.close()

    async def _make(self) -> None:
        pair = free_pair((*self._taken(), *self._avoid))
        if pair is None:
            raise OutsideLinkError("no private /30 is free on this host")
        self._namespace, self._pair = await self._create(), pair
        here, there = pair[1], pair[2]
        host = os.getpid()
        await self._namespace.ip(
            f"link add name {_THERE} type veth peer name {self.name} netns {host}",
            f"address add {there}/30 dev {_THERE}",
            f"link set dev {_THERE} up",
        )
        self._index = socket.if_nametoindex(self.name)
        _without_ipv6(self.name)
        done = await self._run(
            ["ip", "-batch", "-"],
            stdin=(
                f'link set dev {self.name} alias "enclave-agent: asks listeners as clients do"\n'
                f"address add {here}/30 dev {self.name}\nlink set dev {self.name} up\n"
            ).encode(),
        )
        if done.status != 0:
            raise OutsideLinkError(f"ip: {done.complaint}")
        self._have_forwarding()
        await self._namespace.ip(f"route add default via {here}")


def _index_of(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _without_ipv6(name: str) -> None:
    """Nothing is asked by it; a kernel without IPv6 has nothing to turn off."""
    switch = _IPV6 / name / "disable_ipv6"
    if switch.exists():
        switch.write_text("1")


async def probe_outside(create: Create = NetworkNamespace.create) -> str | None:
    """Why this host can have no such place, or None: one is made, and is gone again."""
    link = OutsideLink(f"enc-try-{os.getpid() % 1_000_000}", create=create)
    try:
        await link.have()
    except OutsideLinkError as error:
        return str(error)
    finally:
        await asyncio.shield(link._remove())
    return None
