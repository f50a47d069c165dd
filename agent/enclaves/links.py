"""The kernel's links, routes and neighbours, read and written with the `ip` and `bridge` tools."""

from __future__ import annotations

import ipaddress
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.enclaves.network import NetworkError
from agent.host.commands import CommandError, RunCommand, run_command

T = TypeVar("T")
_IPV6_OFF = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"


class _Data(msgspec.Struct, frozen=True):
    type: object = None
    user: object = None
    stp_state: int | None = None


class PortState(msgspec.Struct, frozen=True):
    """Of a port of a bridge; None: this kernel does not say."""

    isolated: bool | None = None
    hairpin: bool | None = None
    learning: bool | None = None
    flood: bool | None = None
    mcast_flood: bool | None = None


class _Info(msgspec.Struct, frozen=True):
    info_kind: str | None = None
    info_data: _Data = _Data()
    info_slave_data: PortState = PortState()


class _Inet(msgspec.Struct, frozen=True):
    family: str = ""
    local: str | None = None
    prefixlen: int = 32


class NetLink(msgspec.Struct, frozen=True):
    """One link, as `ip -json -details address show` tells it."""

    ifindex: int = 0
    ifname: str = ""
    address: str = ""
    ifalias: str | None = None
    master: str | None = None
    flags: tuple[str, ...] = ()
    linkinfo: _Info = _Info()
    addr_info: tuple[_Inet, ...] = ()

    @property
    def is_up(self) -> bool:
        """Whether it was set up; it may have no carrier."""
        return "UP" in self.flags

    @property
    def ipv4(self) -> list[str]:
        """Its IPv4 addresses, each with its prefix."""
        return [
            f"{one.local}/{one.prefixlen}"
            for one in self.addr_info
            if one.family == "inet" and one.local
        ]

    @property
    def is_bridge(self) -> bool:
        return self.linkinfo.info_kind == "bridge"

    @property
    def is_tap(self) -> bool:
        return self.linkinfo.info_kind == "tun" and self.linkinfo.info_data.type == "tap"

    @property
    def owner_uid(self) -> int | None:
        """The user that may open a tap besides root; None if there is none or it has no name."""
        user = self.linkinfo.info_data.user
        if isinstance(user, int):
            return user
        try:
            return pwd.getpwnam(str(user)).pw_uid if user is not None else None
        except KeyError:
            return int(str(user)) if str(user).isdigit() else None


class KernelRoute(msgspec.Struct, frozen=True):
    """One IPv4 route of any table. `dst` is a network, an address, or `default`."""

    dst: str = "default"
    dev: str | None = None

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network("0.0.0.0/0" if self.dst == "default" else self.dst)


class Neighbour(msgspec.Struct, frozen=True):
    """One IPv4 neighbour entry."""

    dst: str = ""
    lladdr: str | None = None
    state: tuple[str, ...] = ()


class Forwarding(msgspec.Struct, frozen=True):
    """One entry of a bridge's table: which port a card is behind."""

    mac: str = ""
    ifname: str = ""
    state: str = ""


class Links:
    """Every call is one tool's run. Raises NetworkError with the tool's complaint."""

    def __init__(self, run: RunCommand = run_command) -> None:
        self._run = run

    async def links(self) -> dict[str, NetLink]:
        """Every link of this network namespace, by name."""
        rows = await self._read(["-details", "address", "show"], list[NetLink])
        return {row.ifname: row for row in rows}

    async def routes(self) -> list[KernelRoute]:
        """Every IPv4 route, those of the host's own addresses included."""
        return await self._read(["-4", "route", "show", "table", "all"], list[KernelRoute])

    async def neighbours(self, bridge: str) -> list[Neighbour]:
        """The IPv4 neighbours that the host knows there."""
        return await self._read(["-4", "neighbour", "show", "dev", bridge], list[Neighbour])

    async def forwarding(self, bridge: str) -> list[Forwarding]:
        """The bridge's table."""
        return await self._read(["fdb", "show", "br", bridge], list[Forwarding], tool="bridge")

    async def change(self, lines: Sequence[str], *, tool: str = "ip") -> None:
        """Carry out the lines in order, up to the first that fails."""
        script = "".join(f"{line}\n" for line in lines).encode()
        await self._checked([tool, "-batch", "-"], script)

    async def _read(self, words: list[str], kind: type[T], tool: str = "ip") -> T:
        output = await self._checked([tool, "-json", *words])
        try:
            return msgspec.json.decode(output, type=kind)
        except msgspec.MsgspecError as error:
            said = f"`{tool} {' '.join(words)}` printed what is not understood"
            raise NetworkError(said) from error

    async def _checked(self, argv: list[str], stdin: bytes = b"") -> bytes:
        try:
            done = await self._run(argv, stdin=stdin)
        except CommandError as error:
            raise NetworkError(f"the network cannot be changed with {argv[0]}") from error
        if done.status != 0:
            raise NetworkError(f"{argv[0]}: {done.complaint}")
        return done.stdout


def turn_ipv6_off(name: str) -> None:
    """So that the kernel gives a link no IPv6 address; to be called before the link is up.

    Raises NetworkError. A kernel without IPv6 has nothing to turn off.
    """
    try:
        Path(_IPV6_OFF.format(name)).write_text("1")
    except FileNotFoundError:
        return
    except OSError as error:
        raise NetworkError(f"IPv6 cannot be turned off on link {name}") from error
