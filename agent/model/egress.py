"""What guests may open towards other networks: the policy, and what it says of an address. Pure.

Who enforces it differs by network and data plane; what is open and closed is said here alone.

Sources of the closed ranges: RFC 1918, 6598 (100.64/10), 3927 (169.254/16), 6890 (192.0.0/24),
2544 (198.18/15), 5771 (multicast), 1112 (240/4); 0/8 and 127/8 are on no wire (RFC 1122).
Metadata addresses are those that the providers' documentation names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import msgspec


class GuestEgress(StrEnum):
    """`auto` is no policy yet: the composition root says what it became."""

    AUTO = "auto"
    INTERNET = "internet"
    ANY = "any"
    NONE = "none"


def _networks(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(map(IPv4Network, texts))


# What gives credentials or keys of the host's to whoever asks from it. Closed whatever is allowed.
METADATA = _networks(
    "100.96.0.96/32",  # Volcengine
    "100.100.100.200/32",  # Alibaba Cloud
    "168.63.129.16/32",  # Azure's wire server
    "169.254.0.23/32",  # Tencent Cloud
    "169.254.42.42/32",  # Scaleway
    "169.254.169.254/32",  # AWS, Azure, Google, Oracle, OpenStack, Hetzner and most others
    "169.254.170.2/32",  # AWS ECS
    "169.254.170.23/32",  # AWS EKS
    "192.0.0.192/32",  # Oracle Classic
)
# No router forwards it, and providers keep their services there: closed unless allowed by name.
LINK_LOCAL = IPv4Network("169.254.0.0/16")
_NOWHERE = _networks("0.0.0.0/8", "127.0.0.0/8")
_INTERNET_CLOSES = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
_EVERYWHERE = _networks("0.0.0.0/0")


class Allowed(NamedTuple):
    """A network that is open in spite of the policy; `port`: that one alone, of TCP and UDP."""

    network: IPv4Network
    port: int | None = None

    def __str__(self) -> str:
        return str(self.network) if self.port is None else f"{self.network}:{self.port}"


def parse_allowed(text: str) -> Allowed:
    """`CIDR` or `CIDR:PORT`; an address alone is a network of one. Raises ValueError."""
    cidr, colon, port = text.partition(":")
    try:
        network = IPv4Network(cidr)
    except ValueError as error:
        raise ValueError(f"must be CIDR or CIDR:PORT with an IPv4 network: {error}") from None
    if colon and not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise ValueError(f"the port of {text} must be 1 to 65535")
    for closed in METADATA:
        if network.subnet_of(closed):
            raise ValueError(f"{network} is a metadata address, which is closed to guests always")
    for closed in _NOWHERE:
        if network.subnet_of(closed):
            raise ValueError(f"{network} lies in {closed}, where no guest's packet can go")
    return Allowed(network, int(port) if colon else None)


def as_ipv4(address: str) -> IPv4Address | None:
    """What a connection to it is sent to on IPv4; None where that is IPv6. Raises ValueError."""
    where = ipaddress.ip_address(address.partition("%")[0])
    return where if isinstance(where, IPv4Address) else where.ipv4_mapped


class EgressPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`mode` is never `auto`. `allow` opens what the mode closes, but no metadata address."""

    mode: GuestEgress = GuestEgress.ANY
    allow: tuple[Allowed, ...] = ()

    @property
    def closed(self) -> tuple[IPv4Network, ...]:
        """What is closed by its address alone, whatever networks the host has."""
        match self.mode:
            case GuestEgress.NONE:
                return _EVERYWHERE
            case GuestEgress.INTERNET:
                return _INTERNET_CLOSES
            case _:
                return (*_NOWHERE, LINK_LOCAL)

    @property
    def closes_own_networks(self) -> bool:
        """Whether the networks that the host itself is on are closed, too."""
        return self.mode is GuestEgress.INTERNET

    @property
    def allowed_by_port(self) -> dict[int | None, tuple[IPv4Network, ...]]:
        """The networks of each port, without overlaps; None: of all ports and protocols."""
        ports = sorted({one.port for one in self.allow}, key=lambda port: port or 0)
        return {
            port: tuple(
                ipaddress.collapse_addresses(one.network for one in self.allow if one.port == port)
            )
            for port in ports
        }

    def refusal(self, address: str, port: int, own_networks: Sequence[IPv4Network]) -> str | None:
        """Why a guest does not get there by TCP, or None. IPv6 never leaves the guest's tap."""
        where = as_ipv4(address)
        if where is None:
            return "guests have no IPv6"
        if any(where in one for one in METADATA):
            return "a metadata address"
        for one in self.allow:
            if where in one.network and one.port in (None, port):
                return None
        if self.mode is GuestEgress.NONE:
            return "all but what network.guest_egress_allow names is closed"
        for network in self.closed:
            if where in network:
                return f"in {network}"
        for network in own_networks if self.closes_own_networks else ():
            if where in network:
                return f"in {network}, a network of this host's"
        return None


NO_POLICY = EgressPolicy()


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Connections and datagrams of guests that were refused, to one destination.

    `protocol`: tcp, udp, icmp or a number; `port` is None where the protocol has none.
    """

    destination: str
    protocol: str
    port: int | None
    count: int


class EgressFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The policy in force, what made it so, and what it refused, the most frequent first.

    `refused` is None where refusals are not counted: without a table of ours in the kernel.
    """

    mode: GuestEgress
    why: str
    allow: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] | None = None
