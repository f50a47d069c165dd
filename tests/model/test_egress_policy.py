"""The egress policy's words, address by address."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from agent.model.egress import EgressPolicy, GuestEgress, parse_allowed

OWN = (IPv4Network("203.0.113.0/24"),)
METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
)
PRIVATE = (
    "10.0.0.0",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
)
PUBLIC = (
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.1",
    "172.32.0.1",
    "100.128.0.1",
    "192.0.1.1",
    "198.20.0.1",
)


def policy(mode: str, *allow: str) -> EgressPolicy:
    return EgressPolicy(mode=GuestEgress(mode), allow=tuple(map(parse_allowed, allow)))


@pytest.mark.parametrize("mode", ["internet", "any", "none"])
@pytest.mark.parametrize("address", METADATA)
def test_metadata_is_closed_whatever_is_allowed(mode: str, address: str) -> None:
    assert policy(mode, "0.0.0.0/0").refusal(address, 80, OWN) == "a metadata address"
    with pytest.raises(ValueError, match="closed to guests always"):
        parse_allowed(address)


def test_internet_is_what_is_neither_private_nor_the_hosts_own() -> None:
    internet = policy("internet")
    for address in PRIVATE:
        assert internet.refusal(address, 443, OWN), address
    for address in PUBLIC:
        assert internet.refusal(address, 443, OWN) is None, address
    assert "a network of this host's" in (internet.refusal("203.0.113.9", 443, OWN) or "")
    assert internet.refusal("203.0.113.9", 443, ()) is None


def test_any_closes_link_local_addresses_alone_unless_they_are_allowed() -> None:
    for address in (*PUBLIC, "10.0.0.1", "203.0.113.9", "240.0.0.1"):
        assert policy("any").refusal(address, 443, OWN) is None, address
    assert policy("any").refusal("169.254.20.10", 53, OWN)
    assert policy("any", "169.254.20.10/32:53").refusal("169.254.20.10", 53, OWN) is None
    assert policy("any", "169.254.20.10/32:53").refusal("169.254.20.10", 80, OWN)


def test_none_opens_what_is_allowed_by_network_and_port() -> None:
    none = policy("none", "10.1.0.0/16", "203.0.113.9:443")
    assert none.refusal("10.1.2.3", 22, OWN) is None
    assert none.refusal("203.0.113.9", 443, OWN) is None
    for address, port in (("203.0.113.9", 80), ("10.2.0.1", 22), ("1.1.1.1", 443)):
        assert none.refusal(address, port, OWN)


def test_ipv6_is_never_reached() -> None:
    assert policy("any").refusal("2001:db8::1", 443, ()) == "guests have no IPv6"
