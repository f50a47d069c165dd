"""A guest's own frames, through the real tap and onto the real bridge."""

from __future__ import annotations

import asyncio
import json
import select
import shlex
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from agent.enclaves.network import NetworkError, mac_of
from agent.enclaves.network_tap import TapNetwork
from agent.enclaves.tap_probe import probe_tap
from agent.host.commands import CompletedCommand, run_command
from agent.model.ids import EnclaveId
from agent.model.marks import TO_GUEST
from tests.fakes.frames import (
    ACK,
    BROADCAST,
    ICMP,
    RST,
    SYN,
    TCP,
    Packet,
    ethernet,
    icmp,
    tagged,
    tcp,
    udp,
)
from tests.fakes.guest_card import ARP, IPV4, Card, arp
from tests.fakes.netns import ip, own_host

BRIDGE, SUBNET, GATEWAY = "vnt0", "198.18.7.0/24", "198.18.7.1"
BLUE, GREEN = EnclaveId("blueblue"), EnclaveId("greengr2")
BLUE_ADDRESS, GREEN_ADDRESS, CLIENT = "198.18.7.2", "198.18.7.3", "192.0.2.2"
TAP = "enc-blueblue"
MORE_FRAGMENTS = 0x2000

pytestmark = pytest.mark.root


def tap_network(*, gated: bool = True, **more: object) -> TapNetwork:
    return TapNetwork(BRIDGE, SUBNET, instance="one", gated=gated, **more)  # type: ignore[arg-type]


@dataclass
class Guest:
    """The blue guest's card, and a look at the bridge behind it."""

    card: Card
    bridge: socket.socket
    host_mac: str
    mac: str = mac_of(BLUE_ADDRESS)

    @property
    def good(self) -> Packet:
        return Packet(
            self.mac, self.host_mac, BLUE_ADDRESS, GATEWAY, payload=udp(4000, 53, b"good")
        )

    def passes(self, frame: bytes) -> bool:
        """Whether it gets onto the bridge: what is sent after it always does."""
        end = self.good.but(payload=udp(4000, 53, b"the end")).frame()
        self.card.send(frame)
        self.card.send(end)
        seen = []
        while end not in seen:
            assert select.select([self.bridge], [], [], 10)[0], "nothing passes"
            got, where = self.bridge.recvfrom(65536)
            if where[2] != socket.PACKET_OUTGOING:
                seen.append(got)
        return len(seen) > 1


@pytest.fixture
def alone() -> Iterator[None]:
    with own_host():
        yield


@pytest.fixture
async def guest(alone: None) -> AsyncIterator[Guest]:
    network = tap_network()
    await network.start()
    for enclave, address in ((BLUE, BLUE_ADDRESS), (GREEN, GREEN_ADDRESS)):
        await network.attach(enclave, address, (443,))
    card = Card(TAP)
    await forwarding(TAP)
    shown = json.loads(ip(f"-j link show dev {BRIDGE}"))[0]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as bridge:
        bridge.bind((BRIDGE, 3))
        yield Guest(card, bridge, shown["address"])
    card.close()


async def forwarding(tap: str) -> None:
    while True:
        shown = json.loads(ip(f"-j -d link show dev {tap}"))[0]
        if shown["linkinfo"]["info_slave_data"]["state"] == "forwarding":
            return
        await asyncio.sleep(0.01)


def quoting(inner: Packet) -> bytes:
    """The body of an ICMP error about a packet."""
    return b"\0" * 4 + inner.ip()[:28]


def own(guest: Guest) -> Packet:
    """What a client once sent to this guest."""
    return guest.good.but(source=CLIENT, destination=BLUE_ADDRESS, payload=udp(9, 443, b"x" * 20))


LEGITIMATE: dict[str, Callable[[Guest], bytes]] = {
    "a datagram": lambda g: g.good.frame(),
    "to the world": lambda g: g.good.but(destination="8.8.8.8").frame(),
    "a connection": lambda g: g.good.but(
        protocol=TCP, payload=tcp((BLUE_ADDRESS, GATEWAY), (5000, 80), SYN)
    ).frame(),
    "a ping": lambda g: g.good.but(protocol=ICMP, payload=icmp(8, 0)).frame(),
    "a first fragment": lambda g: g.good.but(fragment=MORE_FRAGMENTS).frame(),
    "a later fragment": lambda g: g.good.but(fragment=185, payload=b"x" * 5).frame(),
    "a large ping's first fragment": lambda g: g.good.but(
        protocol=ICMP, payload=icmp(8, 0), fragment=MORE_FRAGMENTS
    ).frame(),
    "an error about what it was sent": lambda g: g.good.but(
        protocol=ICMP, destination=CLIENT, payload=icmp(3, 3, quoting(own(g)))
    ).frame(),
    "another protocol": lambda g: g.good.but(protocol=132, payload=b"").frame(),
    "asking for the gateway": lambda g: arp(
        1, (g.mac, BLUE_ADDRESS), ("00:" * 5 + "00", GATEWAY), BROADCAST
    ),
    "asking for the gateway again": lambda g: arp(
        1, (g.mac, BLUE_ADDRESS), (g.host_mac, GATEWAY), g.host_mac
    ),
    "answering the gateway": lambda g: arp(
        2, (g.mac, BLUE_ADDRESS), (g.host_mac, GATEWAY), g.host_mac
    ),
}

NEIGHBOUR = mac_of(GREEN_ADDRESS)
FORGED: dict[str, Callable[[Guest], bytes]] = {
    "a neighbour's card": lambda g: g.good.but(from_mac=NEIGHBOUR).frame(),
    "the host's card": lambda g: g.good.but(from_mac=g.host_mac).frame(),
    "a card nobody has": lambda g: g.good.but(from_mac="02:00:00:00:00:99").frame(),
    "a neighbour's address": lambda g: g.good.but(source=GREEN_ADDRESS).frame(),
    "an address nobody has": lambda g: g.good.but(source="198.18.7.99").frame(),
    "a client's address": lambda g: g.good.but(source=CLIENT).frame(),
    "the gateway's address": lambda g: g.good.but(source=GATEWAY).frame(),
    "no address": lambda g: g.good.but(source="0.0.0.0").frame(),
    "a loopback address": lambda g: g.good.but(source="127.0.0.1").frame(),
    "to a neighbour's card": lambda g: g.good.but(to_mac=NEIGHBOUR).frame(),
    "a broadcast": lambda g: g.good.but(to_mac=BROADCAST).frame(),
    "a broadcast to all": lambda g: g.good.but(
        to_mac=BROADCAST, destination="255.255.255.255"
    ).frame(),
    "a broadcast address to the host's card": lambda g: g.good.but(
        destination="255.255.255.255"
    ).frame(),
    "a multicast": lambda g: g.good.but(
        to_mac="01:00:5e:00:00:fb", destination="224.0.0.251"
    ).frame(),
    "a multicast to the host's card": lambda g: g.good.but(destination="239.1.2.3").frame(),
    "a later fragment of a neighbour's": lambda g: g.good.but(
        source=GREEN_ADDRESS, fragment=185
    ).frame(),
    "options": lambda g: g.good.but(options=b"\x83\x07\x04" + b"\x08\x08\x08\x08\x00").frame(),
    "a header that is no header": lambda g: ethernet(g.host_mac, g.mac, "ipv4", b"\x41" * 40),
    "a frame cut off in its addresses": lambda g: g.good.but(length=30).frame(),
    "a frame cut off behind its type": lambda g: g.good.but(length=14).frame(),
    "a datagram cut off": lambda g: g.good.but(length=34).frame(),
    "a DHCP server's answer": lambda g: g.good.but(payload=udp(67, 68, b"\x02")).frame(),
    "a DHCP server's answer to all": lambda g: g.good.but(
        to_mac=BROADCAST, destination="255.255.255.255", payload=udp(67, 68, b"\x02")
    ).frame(),
    "a DHCP server's first fragment": lambda g: g.good.but(
        payload=udp(67, 68), fragment=MORE_FRAGMENTS
    ).frame(),
    "a redirect": lambda g: g.good.but(protocol=ICMP, payload=icmp(5, 1, quoting(own(g)))).frame(),
    "a router of IPv4": lambda g: g.good.but(protocol=ICMP, payload=icmp(9, 0)).frame(),
    "an error about a neighbour's connection": lambda g: g.good.but(
        protocol=ICMP,
        destination=CLIENT,
        payload=icmp(3, 3, quoting(own(g).but(destination=GREEN_ADDRESS))),
    ).frame(),
    "a smaller packet for a neighbour's connection": lambda g: g.good.but(
        protocol=ICMP,
        destination=CLIENT,
        payload=icmp(3, 4, quoting(own(g).but(destination=GREEN_ADDRESS))),
    ).frame(),
    "an error that quotes nothing": lambda g: g.good.but(
        protocol=ICMP, payload=icmp(11, 0)
    ).frame(),
    "an error whose quotation follows": lambda g: g.good.but(
        protocol=ICMP, payload=icmp(3, 3, quoting(own(g))), fragment=MORE_FRAGMENTS
    ).frame(),
    "claiming a neighbour's address": lambda g: arp(
        2, (g.mac, GREEN_ADDRESS), (g.host_mac, GATEWAY), g.host_mac
    ),
    "claiming the gateway": lambda g: arp(2, (g.mac, GATEWAY), (BROADCAST, GATEWAY), BROADCAST),
    "claiming a free address": lambda g: arp(
        1, (g.mac, "198.18.7.77"), ("00:" * 5 + "00", GATEWAY), BROADCAST
    ),
    "its own address for another card": lambda g: (
        arp(2, ("02:00:00:00:00:99", BLUE_ADDRESS), (g.host_mac, GATEWAY), g.host_mac)[:6]
        + bytes.fromhex(g.mac.replace(":", ""))
        + arp(2, ("02:00:00:00:00:99", BLUE_ADDRESS), (g.host_mac, GATEWAY), g.host_mac)[12:]
    ),
    "asking for a neighbour": lambda g: arp(
        1, (g.mac, BLUE_ADDRESS), ("00:" * 5 + "00", GREEN_ADDRESS), BROADCAST
    ),
    "announcing itself to all": lambda g: arp(
        1, (g.mac, BLUE_ADDRESS), ("00:" * 5 + "00", BLUE_ADDRESS), BROADCAST
    ),
    "an inverse ARP": lambda g: arp(8, (g.mac, BLUE_ADDRESS), (g.host_mac, GATEWAY), g.host_mac),
    "an ARP cut off": lambda g: arp(1, (g.mac, BLUE_ADDRESS), (g.host_mac, GATEWAY), g.host_mac)[
        :40
    ],
    "a neighbour solicitation of IPv6": lambda g: ethernet(
        "33:33:ff:00:00:01", g.mac, "ipv6", b"\x60" + b"\0" * 39 + icmp(135, 0)
    ),
    "a router advertisement": lambda g: ethernet(
        "33:33:00:00:00:01", g.mac, "ipv6", b"\x60" + b"\0" * 39 + icmp(134, 0)
    ),
    "IPv6 to the host's card": lambda g: ethernet(g.host_mac, g.mac, "ipv6", b"\x60" + b"\0" * 59),
    "spanning tree": lambda g: ethernet(
        "01:80:c2:00:00:00", g.mac, 38, b"\x42\x42\x03" + b"\0" * 43
    ),
    "spanning tree to the host's card": lambda g: ethernet(
        g.host_mac, g.mac, 38, b"\x42\x42\x03" + b"\0" * 43
    ),
    "LLDP": lambda g: ethernet("01:80:c2:00:00:0e", g.mac, "lldp", b"\0" * 46),
    "a pause": lambda g: ethernet("01:80:c2:00:00:01", g.mac, 0x8808, b"\0\1" + b"\0" * 44),
    "a good packet in a VLAN": lambda g: tagged(g.good.frame(), (0x8100, 5)),
    "a good packet in VLAN 0": lambda g: tagged(g.good.frame(), (0x8100, 0)),
    "a good packet in two VLANs": lambda g: tagged(g.good.frame(), (0x88A8, 5), (0x8100, 7)),
    "a good packet in a provider's VLAN": lambda g: tagged(g.good.frame(), (0x88A8, 5)),
    "a neighbour's ARP in a VLAN": lambda g: tagged(
        arp(2, (g.mac, GREEN_ADDRESS), (g.host_mac, GATEWAY), g.host_mac), (0x8100, 0)
    ),
    "PPPoE": lambda g: ethernet(BROADCAST, g.mac, 0x8863, b"\0" * 46),
    "MPLS": lambda g: ethernet(g.host_mac, g.mac, 0x8847, b"\0" * 46),
    "an empty frame": lambda g: ethernet(g.host_mac, g.mac, "ipv4", b""),
}


async def test_what_a_guest_may_send_gets_onto_the_bridge(guest: Guest) -> None:
    stopped = [name for name, make in LEGITIMATE.items() if not guest.passes(make(guest))]
    assert stopped == []


async def test_nothing_that_a_guest_forges_gets_onto_the_bridge(guest: Guest) -> None:
    passed = [name for name, make in FORGED.items() if guest.passes(make(guest))]
    assert passed == []


async def test_a_good_frame_cut_off_anywhere_is_not_taken_for_a_whole_one(guest: Guest) -> None:
    forged = [make(guest) for name, make in FORGED.items() if "cut off" not in name]
    passed = [
        frame[:length]
        for frame in forged
        for length in range(14, min(len(frame), 64))
        if guest.passes(frame[:length])
    ]
    # As long as what is forged about it is not said yet, it may be a good one, and no longer.
    assert [frame for frame in passed if len(frame) > 41] == []
    assert {frame[12:14] for frame in passed} <= {IPV4.to_bytes(2)}


async def test_no_neighbour_entry_grows_by_what_a_guest_says(guest: Guest) -> None:
    before = ip("neigh show")
    for make in (*FORGED.values(), *LEGITIMATE.values()):
        guest.card.send(make(guest))
    assert guest.passes(guest.good.frame())
    assert ip("neigh show") == before
    shown = ["bridge", "fdb", "show", "br", BRIDGE]
    entries = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    assert all(line.split()[-1] in ("static", "permanent") for line in entries.splitlines())


def bare(*, flags: int, source: str = GATEWAY, seq: int = 1) -> Packet:
    """A segment that the host sends to the guest, with no mark."""
    segment = tcp((source, BLUE_ADDRESS), (5000, 80), flags, seq=seq)
    return Packet("", "", source, BLUE_ADDRESS, TCP, segment)


def host_sends(packet: Packet, *, mark: int = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        raw.sendto(packet.ip(), (packet.destination, 0))


def arrived(guest: Guest) -> list[int]:
    """The TCP flags of all segments that the guest was sent until now."""
    last = bare(flags=0x3F)
    host_sends(last, mark=TO_GUEST)
    flags = []
    while flags[-1:] != [0x3F]:
        flags.append(guest.card.next_of(IPV4)[47])
    return flags[:-1]


async def test_a_guest_is_sent_what_is_marked_or_what_the_gateway_itself_opened(
    guest: Guest,
) -> None:
    host_sends(bare(flags=SYN, source=CLIENT))
    host_sends(bare(flags=RST, source=GREEN_ADDRESS))
    host_sends(bare(flags=SYN | ACK))
    host_sends(bare(flags=RST | ACK, source=CLIENT))
    assert arrived(guest) == []
    host_sends(bare(flags=RST | ACK, source=CLIENT, seq=0))
    assert arrived(guest) == [RST | ACK]
    host_sends(bare(flags=SYN))
    host_sends(bare(flags=ACK))
    host_sends(bare(flags=SYN, source=CLIENT), mark=TO_GUEST)
    host_sends(bare(flags=SYN | ACK), mark=TO_GUEST | 0x51)
    assert arrived(guest) == [SYN, ACK, SYN, SYN | ACK]


async def test_without_a_table_of_ours_all_but_other_guests_may_reach_a_guest(
    guest: Guest,
) -> None:
    await tap_network(gated=False).start()
    host_sends(bare(flags=SYN, source=CLIENT))
    host_sends(bare(flags=RST, source=GREEN_ADDRESS))
    host_sends(bare(flags=SYN | ACK))
    assert arrived(guest) == [SYN, SYN | ACK]
    assert "bpf" not in filters(BRIDGE, "ingress")
    assert not guest.passes(FORGED["a neighbour's address"](guest))


def filters(link: str, hook: str) -> str:
    shown = ["tc", "filter", "show", "dev", link, hook]
    return subprocess.run(shown, check=False, capture_output=True, text=True).stdout


def take_filters_away(link: str) -> None:
    subprocess.run(["tc", "qdisc", "delete", "dev", link, "clsact"], check=True)


async def test_taps_that_an_earlier_agent_made_are_filtered_while_they_run(guest: Guest) -> None:
    for link in (TAP, BRIDGE):
        take_filters_away(link)
    assert guest.passes(FORGED["a neighbour's address"](guest))
    index = socket.if_nametoindex(TAP)
    await tap_network().start()
    assert not guest.passes(FORGED["a neighbour's address"](guest))
    assert "bpf" in filters(BRIDGE, "ingress")
    assert socket.if_nametoindex(TAP) == index
    assert is_up(TAP)


def is_up(link: str) -> bool:
    return "UP" in json.loads(ip(f"-j link show dev {link}"))[0]["flags"]


async def test_a_filter_that_somebody_takes_away_or_changes_is_put_back(guest: Guest) -> None:
    whole = {(link, hook): filters(link, hook) for link, hook in HOOKS}
    watch = asyncio.create_task(tap_network().watch())
    try:
        for change in CHANGES:
            await asyncio.sleep(0.3)  # the watch listens, and has seen what it did last
            subprocess.run(["tc", *shlex.split(change)], check=True)
            async with asyncio.timeout(20):
                while {at: filters(*at) for at in HOOKS} != whole:
                    await asyncio.sleep(0.05)
            assert not guest.passes(FORGED["a neighbour's address"](guest))
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


HOOKS = ((TAP, "ingress"), (TAP, "egress"), (BRIDGE, "ingress"))
CHANGES = (
    f"qdisc delete dev {TAP} clsact",
    f"qdisc delete dev {BRIDGE} clsact",
    f"filter delete dev {TAP} egress pref 1",
    f"filter replace dev {TAP} ingress pref 1 handle 1 protocol all bpf bytecode '1,6 0 0 0' da",
)


class NoFilters:
    """Every run of `tc` that would change something ends as on a kernel without cls_bpf."""

    async def __call__(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        if "tc" in argv and b"filter replace" in stdin:
            return CompletedCommand(2, b"", b"Error: TC classifier not found.\n")
        return await run_command(argv, stdin=stdin)


async def test_a_tap_that_cannot_be_filtered_is_down(alone: None) -> None:
    await tap_network().start()
    with pytest.raises(NetworkError, match=r"TC classifier not found.*modprobe cls_bpf"):
        await tap_network(run=NoFilters()).attach(BLUE, BLUE_ADDRESS, (443,))
    assert not is_up(TAP)
    await tap_network().attach(BLUE, BLUE_ADDRESS, (443,))
    assert is_up(TAP)


async def test_a_running_tap_that_lost_its_filter_for_good_is_down_until_it_has_it(
    guest: Guest,
) -> None:
    take_filters_away(TAP)
    with pytest.raises(NetworkError, match="cls_bpf"):
        await tap_network(run=NoFilters()).start()
    assert not is_up(TAP)
    await tap_network().start()
    assert is_up(TAP)
    await forwarding(TAP)
    assert guest.passes(guest.good.frame())


async def test_a_host_without_filters_has_no_taps_and_says_what_it_lacks() -> None:
    reason = await probe_tap(run=NoFilters())
    assert reason is not None
    assert "TC classifier not found" in reason
    assert "modprobe cls_bpf" in reason


async def test_the_gateway_answers_a_guest_and_forgets_who_asked(guest: Guest) -> None:
    guest.card.send(LEGITIMATE["asking for the gateway"](guest))
    assert guest.card.next_of(ARP)[28:32] == socket.inet_aton(GATEWAY)


async def test_a_guest_is_found_again_by_a_host_that_lost_its_neighbour_entry(
    guest: Guest,
) -> None:
    ip(f"neigh delete {BLUE_ADDRESS} dev {BRIDGE}")
    host_sends(bare(flags=SYN), mark=TO_GUEST)
    asked = guest.card.next_of(ARP)
    assert asked[38:42] == socket.inet_aton(BLUE_ADDRESS)
    guest.card.send(LEGITIMATE["answering the gateway"](guest))
    assert guest.card.next_of(IPV4)[47] == SYN
