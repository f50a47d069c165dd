"""The egress policy as part of a tap's program, where no table of ours holds it. Pure.

With these data planes clients come from the host itself, at the gateway's address: so what a guest
sends elsewhere is always of its own making, and its destination alone says whether it may. Nobody
is told of what is dropped, and nothing is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from agent.enclaves.network import NetworkError
from agent.enclaves.packet_program import (
    BYTE,
    DROP,
    EQUAL,
    GREATER_OR_EQUAL,
    HALF,
    HAS_BITS,
    PASS,
    WORD,
    Assembler,
)
from agent.model.egress import METADATA, EgressPolicy, GuestEgress

MOST_NETWORKS = 256  # `tc` sends a program in 16 KiB
_ICMP, _TCP, _UDP = 1, 6, 17
_ECHO_REQUEST = 8
_LATER_FRAGMENT = 0x1FFF
_SYN, _ACK = 0x02, 0x10
# Offsets in a frame with an IPv4 header of 20 bytes.
_FRAGMENT, _PROTOCOL, _DESTINATION, _ICMP_TYPE = 20, 23, 30, 34
_PORT, _PORT_END, _TCP_FLAGS, _TCP_END = 36, 38, 47, 54


@dataclass(frozen=True, slots=True)
class Outward:
    """What a guest may open: by the policy, and at the host (TCP at the gateway's address)."""

    policy: EgressPolicy
    gateway: str
    host_ports: tuple[int, ...] = ()
    own_networks: tuple[IPv4Network, ...] = ()

    @property
    def closed(self) -> tuple[IPv4Network, ...]:
        """Raises NetworkError for more networks than a program can hold."""
        own = self.own_networks if self.policy.closes_own_networks else ()
        if len(own) + len(self.policy.allow) > MOST_NETWORKS:
            raise NetworkError(
                f"network.guest_egress: this host is on {len(own)} networks, more than a tap can "
                f"be closed to ({MOST_NETWORKS}): use traffic.mode: nftables"
            )
        return (*self.policy.closed, *own)


def close(a: Assembler, outward: Outward) -> None:
    """Of an IPv4 packet without options: what comes to the end of it may go on."""
    policy = outward.policy
    a.load(WORD, _DESTINATION)
    a.branch(EQUAL, int(IPv4Address(outward.gateway)), yes="gateway")
    a.jump("elsewhere")
    a.label("gateway")
    if policy.mode is GuestEgress.ANY:
        a.jump("open")
    else:
        _close_gateway(a, outward.host_ports)
    a.label("elsewhere")
    _drop(a, METADATA)
    for port, networks in policy.allowed_by_port.items():
        for network in networks:
            _open(a, network, port)
    a.load(WORD, _DESTINATION)
    _drop(a, outward.closed)
    a.label("open")


def _close_gateway(a: Assembler, host_ports: Iterable[int]) -> None:
    """Answers to the host pass, and new connections to some of its ports."""
    a.load(HALF, _FRAGMENT)
    a.branch(HAS_BITS, _LATER_FRAGMENT, yes="a later fragment")
    a.load(BYTE, _PROTOCOL)
    a.branch(EQUAL, _TCP, yes="tcp to the gateway")
    a.branch(EQUAL, _ICMP, no="no answer")
    a.load_length()
    a.branch(GREATER_OR_EQUAL, _ICMP_TYPE + 1, no="no answer")
    a.load(BYTE, _ICMP_TYPE)
    a.branch(EQUAL, _ECHO_REQUEST, yes="no answer", no="an answer")
    a.label("tcp to the gateway")
    a.load_length()
    a.branch(GREATER_OR_EQUAL, _TCP_END, no="no answer")
    a.load(BYTE, _TCP_FLAGS)
    a.branch(HAS_BITS, _ACK, yes="an answer")
    a.branch(HAS_BITS, _SYN, yes="an opening", no="an answer")  # or a reset
    a.label("no answer")
    a.finish(DROP)
    a.label("a later fragment")
    a.label("an answer")
    a.jump("open")
    a.label("an opening")
    a.load(HALF, _PORT)
    for port in host_ports:
        a.branch(EQUAL, port, no="another")
        a.finish(PASS)
        a.label("another")
    a.finish(DROP)


def _drop(a: Assembler, networks: Iterable[IPv4Network]) -> None:
    """The destination is in the accumulator, and stays there."""
    for network in networks:
        other = _unless_in(a, network)
        a.finish(DROP)
        a.label(other)


def _open(a: Assembler, network: IPv4Network, port: int | None) -> None:
    a.load(WORD, _DESTINATION)
    other = _unless_in(a, network)
    if port is not None:
        a.load(HALF, _FRAGMENT)
        a.branch(HAS_BITS, _LATER_FRAGMENT, yes="allowed")
        a.load(BYTE, _PROTOCOL)
        a.branch(EQUAL, _TCP, yes="a port")
        a.branch(EQUAL, _UDP, no=other)
        a.label("a port")
        a.load_length()
        a.branch(GREATER_OR_EQUAL, _PORT_END, no=other)
        a.load(HALF, _PORT)
        a.branch(EQUAL, port, no=other)
    a.label("allowed")
    a.jump("open")
    a.label(other)


def _unless_in(a: Assembler, network: IPv4Network) -> str:
    """Go to the label that is returned, which is to follow soon, unless the address is in it."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if first:
        a.branch(GREATER_OR_EQUAL, first, no="another")
    if last < 0xFFFFFFFF:
        a.branch(GREATER_OR_EQUAL, last + 1, yes="another")
    return "another"
