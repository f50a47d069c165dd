from __future__ import annotations

import pytest

from agent.traffic.uplinks import is_link, uplinks
from tests.fakes.netns import ip, own_host


@pytest.mark.root
def test_uplinks_are_links_with_an_address_and_no_bridges_but_that_of_the_default_route() -> None:
    with own_host():
        assert uplinks("guests0") == frozenset()
        ip("link add name guests0 type bridge")
        ip("link add name br0 type bridge")
        ip("link add name up0 type veth peer name bare0")
        ip("tuntap add dev tun0 mode tun")
        for link, address in (
            ("guests0", "10.1.0.1/24"),
            ("br0", "10.2.0.1/24"),
            ("up0", "10.3.0.1/24"),
            ("tun0", "10.4.0.1/24"),
        ):
            ip(f"addr add {address} dev {link}")
            ip(f"link set {link} up")
        ip("addr add 10.3.0.2/24 dev up0 label up0:second")
        assert uplinks("guests0") == {"up0", "tun0"}
        ip("route add default via 10.2.0.9 dev br0")
        assert uplinks("guests0") == {"up0", "tun0", "br0"}
        assert is_link("br0")
        assert not is_link("gone0")
