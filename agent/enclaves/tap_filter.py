"""What may pass a guest's tap, as programs for the kernel. Pure.

From a guest: IPv4 from its own address and card to the host's card, and ARP in which it tells the
gateway of itself. Nothing else: no other protocol (IPv6, and so router advertisements and
neighbour discovery; spanning tree; LLDP), no VLAN tags, no multicast, and of broadcasts ARP alone.
An ICMP error must quote a packet that was sent to this guest, or it could speak of a neighbour's
connections.

To a guest: what our table has marked, the agent's own packets, connections that the host itself
opened from the gateway's address, and the kernel's refusals. Where there is no table of ours
(another data plane, so not `gated`), all but other guests' addresses; and what it may send is then
held to the egress policy here (`tap_egress.py`).

Up to the host (`to_host`; only where `gated`): what our table has marked, ARP, and answers to the
gateway on connections that the host opened. So where our table is gone, whoever took it away, a
guest reaches nothing and is reached by nobody but the host itself.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from agent.enclaves.packet_program import (
    BYTE,
    DROP,
    EQUAL,
    GREATER_OR_EQUAL,
    HALF,
    HAS_BITS,
    MARK,
    PASS,
    VLAN_PRESENT,
    WORD,
    Assembler,
    Program,
)
from agent.enclaves.tap_egress import Outward, close
from agent.model.marks import FROM_GUEST, MARK_MASK, TO_GUEST

_IPV4, _ARP = 0x0800, 0x0806
_ICMP, _TCP, _UDP = 1, 6, 17
_ETHERNET_IPV4 = 0x00010800  # ARP: hardware and protocol
_ASKS, _ANSWERS = 0x06040001, 0x06040002  # ARP: lengths of addresses, operation
_NO_OPTIONS = 0x45  # IPv4 with a header of 20 bytes
_LATER_FRAGMENT, _MORE_FRAGMENTS = 0x1FFF, 0x2000
_DHCP_SERVER = 67
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_BARE_SEGMENT = 40  # the length of an IPv4 packet that is two headers
_REDIRECT, _ROUTER_ADVERTISEMENT = 5, 9
_ICMP_ERRORS = (3, 4, 11, 12)  # they quote the packet that they are about
_ALL_ONES = 0xFFFFFFFF
# Offsets from the start of the frame; an IPv4 header has no options where the later ones count.
_TO_MAC, _FROM_MAC, _TYPE, _IP = 0, 6, 12, 14
_FRAGMENT, _PROTOCOL, _SOURCE, _DESTINATION, _BEYOND_IP = 20, 23, 26, 30, 34
_ARP_SENDER_MAC, _ARP_SENDER, _ARP_TARGET, _ARP_END = 22, 28, 38, 42
_TCP_SEQUENCE = _BEYOND_IP + 4
_TCP_FLAGS, _TCP_END = _BEYOND_IP + 13, _BEYOND_IP + 20
_QUOTED_DESTINATION, _QUOTED_END = _BEYOND_IP + 8 + 16, _BEYOND_IP + 8 + 20


@dataclass(frozen=True, slots=True)
class Port:
    """One guest's tap: the guest's card and address, and the host's on the same bridge."""

    mac: str
    address: str
    host_mac: str
    gateway: str
    subnet: ipaddress.IPv4Network


def from_guest(port: Port, outward: Outward | None = None) -> Program:
    """What the guest may send into its tap. `outward`: the policy, if it is to be held here."""
    a = _begin()
    _require_mac(a, _FROM_MAC, port.mac)
    a.load(HALF, _TYPE)
    a.branch(EQUAL, _IPV4, yes="ipv4")
    a.branch(EQUAL, _ARP, no="drop")
    _arp_from_guest(a, port)
    a.label("ipv4")
    _require_mac(a, _TO_MAC, port.host_mac)
    a.load(BYTE, _IP)
    a.branch(EQUAL, _NO_OPTIONS, no="drop")
    _require_address(a, _SOURCE, port.address)
    a.load(WORD, _DESTINATION)
    a.branch(EQUAL, _ALL_ONES, yes="drop")
    a.branch(GREATER_OR_EQUAL, 0xF0000000, yes="unicast")
    a.branch(GREATER_OR_EQUAL, 0xE0000000, yes="drop", no="unicast")  # multicast
    a.label("pass")  # here, too: what follows may be long
    a.finish(PASS)
    a.label("drop")
    a.finish(DROP)
    a.label("unicast")
    if outward is not None:
        close(a, outward)
    a.load(HALF, _FRAGMENT)
    a.branch(HAS_BITS, _LATER_FRAGMENT, yes="pass")  # without its first one it is nothing
    a.load(BYTE, _PROTOCOL)
    a.branch(EQUAL, _UDP, yes="udp")
    a.branch(EQUAL, _ICMP, no="pass")
    _icmp_from_guest(a, port)
    a.label("udp")
    _require_length(a, _BEYOND_IP + 8)
    a.load(HALF, _BEYOND_IP)
    a.branch(EQUAL, _DHCP_SERVER, yes="drop")
    return _end(a)


def _arp_from_guest(a: Assembler, port: Port) -> None:
    """The guest may ask for the gateway, and answer it; always as itself."""
    _require_arp(a)
    _require_mac(a, _ARP_SENDER_MAC, port.mac)
    _require_address(a, _ARP_SENDER, port.address)
    _require_address(a, _ARP_TARGET, port.gateway)
    a.load(WORD, _TO_MAC)
    a.branch(EQUAL, _ALL_ONES, no="to the host's card")
    a.load(HALF, _TO_MAC + 4)
    a.branch(EQUAL, _ALL_ONES >> 16, yes="pass", no="drop")
    a.label("to the host's card")
    _require_mac(a, _TO_MAC, port.host_mac)
    a.finish(PASS)


def _icmp_from_guest(a: Assembler, port: Port) -> None:
    """Errors must quote a packet to this guest, whole, so that none is completed later."""
    _require_length(a, _BEYOND_IP + 1)
    a.load(BYTE, _BEYOND_IP)
    a.branch(EQUAL, _REDIRECT, yes="drop")
    a.branch(EQUAL, _ROUTER_ADVERTISEMENT, yes="drop")
    for kind in _ICMP_ERRORS[:-1]:
        a.branch(EQUAL, kind, yes="error")
    a.branch(EQUAL, _ICMP_ERRORS[-1], no="pass")
    a.label("error")
    a.load(HALF, _FRAGMENT)
    a.branch(HAS_BITS, _MORE_FRAGMENTS, yes="drop")
    _require_length(a, _QUOTED_END)
    _require_address(a, _QUOTED_DESTINATION, port.address)
    a.finish(PASS)


def to_guest(port: Port, *, gated: bool, hairpin: bool = False) -> Program:
    """What may go out of the tap, to the guest.

    `hairpin`: what our table has marked may come from another guest's card. A kernel that filters
    bridged packets sends what it translates from one guest to another without the host's card.
    """
    a = _begin()
    if hairpin and gated:
        a.load(HALF, _TYPE)
        a.branch(EQUAL, _IPV4, no="from the host")
        _require_mac(a, _TO_MAC, port.mac)
        _require_address(a, _DESTINATION, port.address)
        _pass_marked(a, TO_GUEST)
        a.label("from the host")
    _require_mac(a, _FROM_MAC, port.host_mac)
    a.load(HALF, _TYPE)
    a.branch(EQUAL, _IPV4, yes="ipv4")
    a.branch(EQUAL, _ARP, no="drop")
    _require_arp(a)
    _require_address(a, _ARP_SENDER, port.gateway)
    _require_address(a, _ARP_TARGET, port.address)
    a.load(HALF, _TO_MAC)
    a.branch(EQUAL, 0xFFFF, yes="pass")  # a host that lost its entry for the guest asks everybody
    _require_mac(a, _TO_MAC, port.mac)
    a.finish(PASS)
    a.label("ipv4")
    _require_mac(a, _TO_MAC, port.mac)
    _require_address(a, _DESTINATION, port.address)
    if gated:
        _pass_marked(a, TO_GUEST)
        _pass_unmarked(a, port)
        return _end(a)
    a.load(WORD, _SOURCE)
    a.branch(EQUAL, _number(port.gateway), yes="pass")
    a.keep_bits(int(port.subnet.netmask))
    a.branch(EQUAL, int(port.subnet.network_address), yes="drop")
    return _end(a)


def _pass_unmarked(a: Assembler, port: Port) -> None:
    """What the host opened from the gateway's address, and refusals of what the guest tried to.

    A kernel with br_netfilter sends the reset for a rejected SYN past every table. Such a one has
    sequence number 0 and no data: it says nothing to a connection that is established.
    """
    _require_tcp(a)
    a.branch(EQUAL, _RST | _ACK, yes="refusal")
    a.keep_bits(_SYN | _ACK)
    a.branch(EQUAL, _SYN | _ACK, yes="drop")  # it would accept what a guest opened
    _require_address(a, _SOURCE, port.gateway)
    a.finish(PASS)
    a.label("refusal")
    a.load(WORD, _SOURCE)
    a.branch(EQUAL, _number(port.gateway), yes="pass")
    a.load(WORD, _TCP_SEQUENCE)
    a.branch(EQUAL, 0, no="drop")
    a.load(HALF, _IP + 2)
    a.branch(EQUAL, _BARE_SEGMENT, no="drop")


def to_host(gateway: str) -> Program:
    """What of all guests' packets may go up from the bridge to the host."""
    a = _begin()
    a.load(HALF, _TYPE)
    a.branch(EQUAL, _ARP, yes="pass")
    a.branch(EQUAL, _IPV4, no="drop")
    _pass_marked(a, FROM_GUEST)
    _require_address(a, _DESTINATION, gateway)
    _require_tcp(a)
    a.branch(HAS_BITS, _ACK, no="drop")  # it would open a connection
    return _end(a)


def _begin() -> Assembler:
    """Long enough for the headers that every check reads, and in no VLAN."""
    a = Assembler()
    _require_length(a, _BEYOND_IP)
    a.load(WORD, VLAN_PRESENT)
    a.branch(EQUAL, 0, no="drop")
    return a


def _end(a: Assembler) -> Program:
    a.label("pass")
    a.finish(PASS)
    a.label("drop")
    a.finish(DROP)
    return a.program()


def _require_length(a: Assembler, length: int) -> None:
    a.load_length()
    a.branch(GREATER_OR_EQUAL, length, no="drop")


def _require_mac(a: Assembler, offset: int, mac: str) -> None:
    number = int(mac.replace(":", ""), 16)
    a.load(WORD, offset)
    a.branch(EQUAL, number >> 16, no="drop")
    a.load(HALF, offset + 4)
    a.branch(EQUAL, number & 0xFFFF, no="drop")


def _require_address(a: Assembler, offset: int, address: str) -> None:
    a.load(WORD, offset)
    a.branch(EQUAL, _number(address), no="drop")


def _require_arp(a: Assembler) -> None:
    """A whole question or answer about IPv4 on Ethernet."""
    _require_length(a, _ARP_END)
    a.load(WORD, _IP)
    a.branch(EQUAL, _ETHERNET_IPV4, no="drop")
    a.load(WORD, _IP + 4)
    a.branch(EQUAL, _ASKS, yes="whole")
    a.branch(EQUAL, _ANSWERS, no="drop")
    a.label("whole")


def _require_tcp(a: Assembler) -> None:
    """A whole TCP header; its flags are then in the accumulator."""
    _require_length(a, _TCP_END)
    a.load(BYTE, _IP)
    a.branch(EQUAL, _NO_OPTIONS, no="drop")
    a.load(BYTE, _PROTOCOL)
    a.branch(EQUAL, _TCP, no="drop")
    a.load(HALF, _FRAGMENT)
    a.branch(HAS_BITS, _LATER_FRAGMENT | _MORE_FRAGMENTS, yes="drop")
    a.load(BYTE, _TCP_FLAGS)


def _pass_marked(a: Assembler, mark: int) -> None:
    a.load(WORD, MARK)
    a.keep_bits(MARK_MASK)
    a.branch(EQUAL, mark, yes="pass")


def _number(address: str) -> int:
    return int(ipaddress.IPv4Address(address))
