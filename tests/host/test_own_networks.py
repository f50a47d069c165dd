"""The networks that a host is on, read from the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from agent.host.networks import own_networks
from tests.fakes.netns import ip, own_host

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def links() -> Iterator[None]:
    with own_host():
        for link in ("up0", "br0"):
            ip(f"link add {link} type bridge")
            ip(f"link set {link} up")
        ip("addr add 10.215.0.1/24 dev br0")
        yield


def found() -> set[str]:
    return set(map(str, own_networks("br0")))


def test_addresses_and_routes_without_a_gateway_count_and_the_guests_bridge_does_not() -> None:
    assert found() == set()
    ip("addr add 203.0.113.5/24 dev up0")
    ip("addr add 198.51.100.1/32 peer 198.51.100.9 dev up0")
    ip("route add 192.0.2.0/25 dev up0 table 7")
    assert found() == {
        "203.0.113.0/24",
        "198.51.100.1/32",
        "198.51.100.9/32",
        "192.0.2.0/25",
    }
    ip("addr flush dev up0")
    ip("route flush table 7")
    assert found() == set()


def test_what_lies_behind_a_gateway_and_a_default_in_disguise_are_not_the_hosts_own() -> None:
    ip("addr add 203.0.113.5/24 dev up0")
    ip("route add default dev up0")
    ip("route add 0.0.0.0/1 dev up0")
    ip("route add 64.0.0.0/7 dev up0")
    ip("route add 192.0.2.0/24 via 203.0.113.1")
    ip("route add 198.51.100.0/24 nexthop via 203.0.113.1 nexthop via 203.0.113.2")
    ip("route add blackhole 100.0.0.0/24")
    assert found() == {"203.0.113.0/24"}


def test_very_many_are_read_whole() -> None:
    lines = [f"route add 20.{n // 256}.{n % 256}.0/25 dev up0" for n in range(1000)]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), check=True)
    assert len(found()) == 1000


def test_a_bridge_that_is_not_there_yet_leaves_nothing_out() -> None:
    assert set(map(str, own_networks("nosuch"))) == {"10.215.0.0/24"}
