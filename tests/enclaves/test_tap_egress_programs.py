"""Tap programs run by an interpreter of classic BPF, against the policy's own words."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.enclaves.network import NetworkError, mac_of
from agent.enclaves.packet_program import MARK, PASS, VLAN_PRESENT, Program
from agent.enclaves.tap_egress import MOST_NETWORKS, Outward
from agent.enclaves.tap_filter import Port, from_guest
from agent.model.egress import METADATA, EgressPolicy, GuestEgress, parse_allowed
from tests.fakes.frames import ACK, SYN, TCP, UDP, Packet, tcp, udp

HOST_MAC, GUEST, GATEWAY = "02:01:00:00:00:01", "10.215.0.7", "10.215.0.1"
PORT = Port(mac_of(GUEST), GUEST, HOST_MAC, GATEWAY, IPv4Network("10.215.0.0/24"))
OWN = (IPv4Network("203.0.113.0/24"), IPv4Network("198.51.100.8/32"))
ALLOW = tuple(map(parse_allowed, ("10.3.0.0/16", "10.2.0.0/16:443", "203.0.113.64/26:53")))


def run(program: Program, frame: bytes) -> int:
    """What cls_bpf does. Sources: linux/filter.h, Documentation/networking/filter.rst."""
    at, a = 0, 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        match code:
            case 0x06:
                return k
            case 0x05:
                at += k
            case 0x80:
                a = len(frame)
            case 0x54:
                a &= k
            case 0x20 | 0x28 | 0x30 if k in (MARK, VLAN_PRESENT):
                a = 0
            case 0x20 | 0x28 | 0x30:
                size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
                if k + size > len(frame):
                    return 0
                a = int.from_bytes(frame[k : k + size], "big")
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: a == k, 0x35: a >= k, 0x45: bool(a & k)}[code]
                at += jt if holds else jf
            case _:
                raise AssertionError(hex(code))


def passes(outward: Outward, protocol: int, to: str, payload: bytes) -> bool:
    frame = Packet(PORT.mac, HOST_MAC, GUEST, to, protocol, payload).frame()
    return run(from_guest(PORT, outward), frame) == PASS


def opening(to: str, port: int) -> bytes:
    return tcp((GUEST, to), (40000, port), SYN)


EDGES = [
    IPv4Address(int(edge) + step)
    for network in (
        *METADATA,
        *EgressPolicy(mode=GuestEgress.INTERNET).closed,
        *OWN,
        *(one.network for one in ALLOW),
    )
    for edge in (network.network_address, network.broadcast_address)
    for step in (-1, 0, 1)
    if 0 <= int(edge) + step < 1 << 32
]
UNICAST = st.one_of(st.sampled_from(EDGES), st.ip_addresses(v=4)).filter(
    lambda one: not one.is_multicast and one != IPv4Address("255.255.255.255")
)


@pytest.mark.parametrize("mode", ["internet", "any", "none"])
@settings(max_examples=150, deadline=None)
@given(to=UNICAST, port=st.sampled_from([53, 80, 443]))
def test_a_program_passes_exactly_what_the_policy_opens(
    mode: str, to: IPv4Address, port: int
) -> None:
    policy = EgressPolicy(mode=GuestEgress(mode), allow=ALLOW)
    outward = Outward(policy, GATEWAY, (), OWN)
    if str(to) == GATEWAY:
        return
    said = policy.refusal(str(to), port, OWN) is None
    assert passes(outward, TCP, str(to), opening(str(to), port)) is said
    assert passes(outward, UDP, str(to), udp(40000, port)) is said


@pytest.mark.parametrize("mode", ["internet", "none"])
def test_at_the_gateway_answers_and_opened_ports_pass_alone(mode: str) -> None:
    outward = Outward(EgressPolicy(mode=GuestEgress(mode)), GATEWAY, tuple(range(1000, 1200)))
    for port in (1000, 1199):
        assert passes(outward, TCP, GATEWAY, opening(GATEWAY, port))
    assert not passes(outward, TCP, GATEWAY, opening(GATEWAY, 22))
    assert passes(outward, TCP, GATEWAY, tcp((GUEST, GATEWAY), (443, 50000), SYN | ACK))
    assert passes(outward, TCP, GATEWAY, tcp((GUEST, GATEWAY), (443, 50000), ACK))
    assert not passes(outward, TCP, GATEWAY, opening(GATEWAY, 1000)[:13])
    assert not passes(outward, UDP, GATEWAY, udp(1, 1000))
    anywhere = Outward(EgressPolicy(), GATEWAY)
    assert passes(anywhere, TCP, GATEWAY, opening(GATEWAY, 22))


def test_a_host_on_very_many_networks_is_held_or_refused_by_name() -> None:
    own = tuple(IPv4Network(f"20.0.{number}.0/32") for number in range(MOST_NETWORKS))
    internet = EgressPolicy(mode=GuestEgress.INTERNET)
    outward = Outward(internet, GATEWAY, (), own)
    assert not passes(outward, TCP, "20.0.255.0", opening("20.0.255.0", 80))
    assert passes(outward, TCP, "20.0.255.1", opening("20.0.255.1", 80))
    with pytest.raises(NetworkError, match=r"network\.guest_egress.*nftables"):
        from_guest(PORT, Outward(internet, GATEWAY, (), (*own, *OWN)))
