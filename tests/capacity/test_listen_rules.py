"""Where a deployment may listen, by what is known of the host."""

from __future__ import annotations

import pytest

from agent.capacity.listen_rules import Door, ListenRules
from agent.model.addresses import HostAddresses
from agent.model.resources import Listen

RULES = ListenRules(
    addresses=HostAddresses(
        local=("127.0.0.0/8", "192.0.2.1/32", "10.77.0.1/32", "2001:db8::1/128", "::1/128"),
        broadcast=("192.0.2.255", "10.77.0.255"),
    ),
    floating=("198.51.100.0/28", "2001:db8:f::/64"),
    guests="10.77.0.0/24",
    doors=(
        Door(listen=Listen.parse("127.0.0.1:8470"), whose="the agent itself (listen.status)"),
        Door(listen=Listen.parse("0.0.0.0:8471"), whose="the agent itself (listen.rpc)"),
        Door(listen=Listen.parse("0.0.0.0:22"), whose="this host's SSH server"),
        Door(listen=Listen.parse("[::]:22"), whose="this host's SSH server"),
        Door(listen=Listen.parse("192.0.2.1:8472"), whose="the coordinator (coordinator.url)"),
    ),
)


@pytest.mark.parametrize(
    "listen",
    [
        "0.0.0.0:443",
        "[::]:443",
        "192.0.2.1:443",
        "127.0.0.1:443",
        "127.9.8.7:443",
        "[2001:db8::1]:443",
        "198.51.100.3:443",  # floating, absent
        "[2001:db8:f::9]:443",
        "192.0.2.1:8470",  # the agent's is on the loopback
        "127.0.0.1:8472",
    ],
)
def test_a_listener_of_the_hosts_own_may_be_had(listen: str) -> None:
    assert RULES.fault(Listen.parse(listen)) is None


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("224.0.0.1:443", "multicast"),
        ("239.255.255.255:443", "multicast"),
        ("[ff02::1]:443", "multicast"),
        ("255.255.255.255:443", "reserved"),
        ("0.0.0.1:443", "reserved"),
        ("240.0.0.1:443", "reserved"),
        ("10.77.0.4:443", "guests' subnet"),
        ("10.77.0.1:443", "guests' subnet"),  # the gateway, which is an address of the host
        ("10.77.0.0:443", "guests' subnet"),
        ("10.77.0.255:443", "guests' subnet"),
        ("192.0.2.255:443", "broadcast"),
        ("192.0.2.9:443", "no address of this host"),
        ("8.8.8.8:443", "no address of this host"),
        ("198.51.100.16:443", "no address of this host"),
        ("[2001:db8::2]:443", "no address of this host"),
        ("[fe80::1]:443", "link-local"),
        ("[::ffff:192.0.2.1]:443", "write 192.0.2.1"),
        ("127.0.0.1:8470", "listen.status"),
        ("0.0.0.0:8470", "listen.status"),
        ("192.0.2.1:8471", "listen.rpc"),
        ("0.0.0.0:22", "SSH"),
        ("192.0.2.1:22", "SSH"),
        ("198.51.100.3:22", "SSH"),
        ("[2001:db8::1]:22", "SSH"),
        ("0.0.0.0:8472", "coordinator"),
        ("192.0.2.1:8472", "coordinator"),
    ],
)
def test_a_listener_that_is_anothers_or_nowhere_is_refused(listen: str, why: str) -> None:
    assert why in (RULES.fault(Listen.parse(listen)) or "admitted")


def test_a_floating_address_is_absent_until_it_is_the_hosts() -> None:
    listen = Listen.parse("198.51.100.3:443")
    assert "not on this host now" in (RULES.absence(listen) or "")
    here = HostAddresses(local=("198.51.100.3/32",))
    assert ListenRules(addresses=here, floating=RULES.floating).absence(listen) is None
    assert RULES.absence(Listen.parse("0.0.0.0:443")) is None


def test_where_addresses_cannot_be_read_only_what_is_certain_refuses() -> None:
    rules = ListenRules(guests="10.77.0.0/24")
    assert rules.fault(Listen.parse("192.0.2.9:443")) is None
    assert rules.absence(Listen.parse("192.0.2.9:443")) is None
    assert rules.fault(Listen.parse("224.0.0.1:443")) is not None
    assert rules.fault(Listen.parse("10.77.0.4:443")) is not None
