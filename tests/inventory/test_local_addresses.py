"""The host's own addresses, as the kernel of a namespace of the test's own says them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from agent.inventory.local_addresses import read_local_addresses
from tests.fakes.netns import add_ipv6, ip, own_host

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _host() -> Iterator[None]:
    with own_host():
        ip("link add lan type veth peer name wan")
        ip("link set wan up")
        ip("link set lan up")
        yield


def test_addresses_of_links_and_what_is_routed_to_the_host_are_its_own() -> None:
    ip("addr add 192.0.2.1/24 broadcast + dev lan")
    add_ipv6("2001:db8::1/64", "lan")
    ip("route add local 198.51.100.0/28 dev lo")
    ip("route add 203.0.113.0/24 via 192.0.2.254")  # routed, and not ours
    seen = read_local_addresses()
    own = ("192.0.2.1", "127.9.9.9", "198.51.100.9", "2001:db8::1", "::1")
    assert all(seen.has(one) for one in own)
    others = ("192.0.2.2", "192.0.2.255", "203.0.113.1", "198.51.100.16", "2001:db8::2")
    assert not any(seen.has(one) for one in others)
    assert "192.0.2.255" in seen.broadcast


def test_an_address_that_goes_is_gone_at_the_next_look() -> None:
    ip("addr add 192.0.2.7/32 dev lan")
    assert read_local_addresses().has("192.0.2.7")
    ip("addr del 192.0.2.7/32 dev lan")
    assert not read_local_addresses().has("192.0.2.7")


def test_more_addresses_than_one_answer_holds_are_all_read() -> None:
    prefixes = [f"10.1.{number // 256}.{number % 256}/32" for number in range(2000)]
    lines = "".join(f"route add local {prefix} dev lo\n" for prefix in prefixes)
    subprocess.run(["ip", "-batch", "-"], input=lines.encode(), check=True)
    assert set(prefixes) <= set(read_local_addresses().local)
