"""Guests with stacks of their own on real taps, behind the real table: who reaches whom.

What a guest may put into its tap is tried frame by frame in tests/enclaves/test_tap_filter.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.enclaves.network import mac_of
from agent.enclaves.network_tap import TapNetwork
from agent.host.contact import NoAnswerError, open_tcp
from agent.host.guest_sockets import GuestSockets
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId
from agent.model.resources import Listen
from agent.traffic.nftables import NftablesTraffic
from tests.fakes.frames import ACK, ICMP, RST, TCP, UDP, Packet, icmp, tcp, udp
from tests.fakes.guest_card import arp
from tests.fakes.netns import Server, ip, join, own_host
from tests.fakes.tap_guest import TapGuest
from tests.traffic.clients import ask
from tests.traffic.remote import Remote
from tests.traffic.worlds import BRIDGE, CLIENT, GATEWAY, OUTSIDE, PORTS, SUBNET, order

BLUE, GREEN = "10.99.7.2", "10.99.7.3"
ENCLAVES = {BLUE: EnclaveId("blueblue"), GREEN: EnclaveId("greengr2")}
PORT = PORTS[0]
SSH = 2222  # something of the host's that listens on all its addresses
LISTEN = Listen(address=OUTSIDE, port=8443)
OURS = GuestSockets(BRIDGE)

pytestmark = pytest.mark.root


@dataclass
class World:
    """The host is this thread's namespace; `inside` runs programs in guests."""

    state_file: Path
    guests: dict[str, TapGuest]
    inside: dict[str, Remote]
    client: Remote
    host_mac: str

    def traffic(self, host_ports: tuple[int, ...] = ()) -> NftablesTraffic:
        return NftablesTraffic(BRIDGE, SUBNET, host_ports, state_file=self.state_file)


def network() -> TapNetwork:
    return TapNetwork(BRIDGE, SUBNET, instance="walls")


@pytest.fixture
async def world(short_dir: Path) -> AsyncIterator[World]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_host())
        await network().start()
        guests, inside = {}, {}
        for name, address in (("blue", BLUE), ("green", GREEN)):
            nic = await network().attach(ENCLAVES[address], address, (PORT,))
            server = Server(name, address, PORTS, netns=True)
            stack.callback(server.stop)
            guest = TapGuest(
                server, link=nic.name, mac=nic.mac, cidr=f"{address}/24", gateway=GATEWAY
            )
            stack.callback(guest.close)
            server.listen()
            guests[address] = guest
            inside[address] = stack.enter_context(Remote(server.pid))
            other = GREEN if address == BLUE else BLUE
            ip(f"route add {other}/32 via {GATEWAY}", server.pid)  # the way that a host forwards
        client = stack.enter_context(Remote())
        join(client.pid, link="trtclient", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtclient")
        stack.enter_context(socket.create_server(("0.0.0.0", SSH)))
        shown = json.loads(ip(f"-j link show dev {BRIDGE}"))[0]
        yield World(short_dir / "sysctls.json", guests, inside, client, shown["address"])


@pytest.fixture
async def traffic(world: World) -> NftablesTraffic:
    made = world.traffic()
    await made.start()
    await made.apply(order(1, (LISTEN, Endpoint(address=GREEN, port=PORT))))
    return made


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)


async def reached(address: str, port: int = PORT) -> str:
    """What comes of the agent's own look at a guest."""
    try:
        async with open_tcp(Endpoint(address=address, port=port), timeout_s=2, sockets=OURS):
            return "connected"
    except NoAnswerError as error:
        return str(error)


async def test_with_our_table_clients_and_the_host_reach_guests_and_guests_the_world(
    world: World, traffic: NftablesTraffic
) -> None:
    assert world.client.ask(OUTSIDE, 8443) == f"green {CLIENT}"
    assert await ask(LISTEN) == "green"
    assert await reached(BLUE) == "connected"
    blue = world.inside[BLUE]
    assert blue.datagram(GATEWAY, 9) == "prohibited"
    with world.client.server(80):
        assert blue.outcome(CLIENT, 80) == "connected"
    assert blue.outcome(CLIENT, 81) == "refused"
    assert blue.datagram(CLIENT, 9) == "closed"
    assert blue.outcome(GREEN, PORT) == "refused"
    assert blue.outcome(GATEWAY, SSH) == "refused"


async def test_a_port_of_the_host_that_is_opened_to_guests_answers_them(world: World) -> None:
    await world.traffic(host_ports=(SSH,)).start()
    assert world.inside[BLUE].outcome(GATEWAY, SSH) == "connected"


async def test_bridges_that_are_filtered_as_docker_has_it_change_nothing(
    world: World, traffic: NftablesTraffic
) -> None:
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")
    assert world.client.ask(OUTSIDE, 8443) == f"green {CLIENT}"
    with world.client.server(80):
        assert world.inside[BLUE].outcome(CLIENT, 80) == "connected"
    assert world.inside[BLUE].outcome(GATEWAY, SSH) == "refused"


# With it the kernel goes on translating the connections that it knows.
SOMEBODY_ELSES = """
add table ip other
add chain ip other nat { type nat hook prerouting priority dstnat; }
"""
FLUSHES = {
    "everything": "flush ruleset",
    "our tables": "delete table inet enclave_agent\ndelete table bridge enclave_agent",
}


@pytest.mark.parametrize("flush", FLUSHES.values(), ids=FLUSHES)
async def test_when_our_tables_are_taken_away_nothing_passes_until_the_agent_is_back(
    world: World, traffic: NftablesTraffic, flush: str
) -> None:
    ip(f"route add {SUBNET} via {OUTSIDE}", world.client.pid)
    blue, client = world.inside[BLUE], world.client
    assert client.ask(OUTSIDE, 8443) == f"green {CLIENT}"
    client.hold(OUTSIDE, 8443)
    nft(flush)
    nft(SOMEBODY_ELSES)
    for guest in (BLUE, GREEN):
        assert client.outcome(guest, PORT) == "timed out"
        assert await reached(guest) == "connected"  # the agent's own looks
    with pytest.raises(ConnectionRefusedError):
        await ask(LISTEN)
    assert client.outcome(OUTSIDE, 8443) == "refused"  # nobody listens there any more
    for address in (GATEWAY, OUTSIDE):
        assert blue.outcome(address, SSH) == "timed out"
        assert blue.datagram(address, 9) == "unanswered"
    assert blue.outcome(GREEN, PORT) == "timed out"
    with client.server(80):
        assert blue.outcome(CLIENT, 80) == "timed out"
    assert GREEN not in ip("-4 neigh show nud incomplete")

    await network().start()
    back = world.traffic()
    await back.start()
    await back.apply(order(1, (LISTEN, Endpoint(address=GREEN, port=PORT))))
    assert client.ask(OUTSIDE, 8443) == f"green {CLIENT}"
    assert blue.outcome(CLIENT, 80) == "connected"
    assert blue.outcome(GATEWAY, SSH) == "refused"


async def test_without_one_of_our_two_tables_a_guest_still_reaches_no_port_of_the_host(
    world: World, traffic: NftablesTraffic
) -> None:
    for family in ("inet", "bridge"):
        nft(f"delete table {family} enclave_agent")
        assert world.inside[BLUE].outcome(GATEWAY, SSH) == "timed out"
        assert world.inside[BLUE].outcome(GREEN, PORT) == "timed out"
        assert await traffic.observe() == {}
        again = world.traffic()
        await again.start()
        if family == "bridge":
            assert len(await again.observe()) == 1  # the orders were in the other table
        await again.apply(order(1, (LISTEN, Endpoint(address=GREEN, port=PORT))))
        assert world.client.ask(OUTSIDE, 8443) == f"green {CLIENT}"


@dataclass
class Segment:
    """The last one that a guest sent to a client, as it was seen on the bridge."""

    port: int
    next_seq: int
    next_ack: int


def overheard(said: Callable[[], object]) -> Segment:
    """What an attacker would have to guess of the neighbour's connection."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as bridge:
        bridge.bind((BRIDGE, 3))
        said()
        found = None
        while select.select([bridge], [], [], 0.3)[0]:
            packet = bridge.recv(65536)
            if packet[23] == TCP and packet[26:30] == socket.inet_aton(GREEN):
                port, seq, ack = struct.unpack("!HII", packet[36:46])
                size = struct.unpack("!H", packet[16:18])[0] - 20 - (packet[46] >> 4) * 4
                found = Segment(port, seq + size, ack)
    assert found is not None
    return found


def forgeries(world: World, of: Segment) -> Iterator[bytes]:
    """A reset, and errors, from blue's own card, each right in all but who says it."""
    blue_mac = mac_of(BLUE)
    base = Packet(blue_mac, world.host_mac, GREEN, CLIENT, TCP)
    down, up = (GREEN, CLIENT), (CLIENT, GREEN)
    from_guest = tcp(down, (PORT, of.port), RST | ACK, seq=of.next_seq, ack=of.next_ack)
    from_client = tcp(up, (of.port, PORT), RST | ACK, seq=of.next_ack, ack=of.next_seq)
    yield base.but(payload=from_guest).frame()
    yield base.but(source=CLIENT, destination=GREEN, payload=from_client).frame()
    yield base.but(
        to_mac=mac_of(GREEN), source=CLIENT, destination=GREEN, payload=from_client
    ).frame()
    asked = Packet("", "", CLIENT, GREEN, TCP, tcp(up, (of.port, PORT), ACK, seq=of.next_ack))
    for kind, code in ((3, 2), (3, 3), (3, 4), (11, 0), (12, 0)):
        error = icmp(kind, code, struct.pack("!HH", 0, 68) + asked.ip()[:40])
        for source in (BLUE, GREEN):
            yield base.but(source=source, protocol=ICMP, payload=error).frame()


async def test_nobody_resets_or_speaks_into_a_neighbours_connection(
    world: World, traffic: NftablesTraffic
) -> None:
    world.client.hold(OUTSIDE, 8443)
    segment = overheard(lambda: world.client.held(say="hello"))
    with sniffing("trtclient") as seen:
        for frame in forgeries(world, segment):
            world.guests[BLUE].send(frame)
        await asyncio.sleep(0.3)
        told = [packet for packet in seen() if packet[26:30] == socket.inet_aton(OUTSIDE)]
    assert told == []  # not even an error about it leaves the host
    assert world.client.held(say="still there") == ["data"]


@contextlib.contextmanager
def sniffing(link: str) -> Iterator[Callable[[], list[bytes]]]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind((link, 3))
        wire.setblocking(False)

        def seen() -> list[bytes]:
            packets = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    packets.append(wire.recv(65536))
            return packets

        yield seen


async def test_a_guest_that_floods_is_answered_only_so_often(
    world: World, traffic: NftablesTraffic
) -> None:
    ask_for_gateway = arp(
        1, (mac_of(BLUE), BLUE), ("00:00:00:00:00:00", GATEWAY), "ff:ff:ff:ff:ff:ff"
    )
    with sniffing("enc-blueblue") as seen:
        begun = time.monotonic()
        for _ in range(3000):
            world.guests[BLUE].send(ask_for_gateway)
        lasted = time.monotonic() - begun
        answers = [packet for packet in seen() if packet[20:22] == b"\0\2"]
    assert 1 <= len(answers) <= 50 + 10 * (lasted + 1)
    # The neighbour has a measure of its own.
    ip("neigh flush dev eth0", world.inside[GREEN].pid)
    assert world.client.ask(OUTSIDE, 8443) == f"green {CLIENT}"


async def test_frames_of_ever_new_flows_take_their_share_of_the_connection_table_and_no_more(
    world: World, traffic: NftablesTraffic
) -> None:
    base = Packet(mac_of(BLUE), world.host_mac, BLUE, CLIENT, UDP)
    begun = time.monotonic()
    for port in range(5000):
        world.guests[BLUE].send(base.but(payload=udp(1024 + port, 9)).frame())
    lasted = time.monotonic() - begun
    listed = subprocess.run(["conntrack", "-L", "-s", BLUE], capture_output=True, check=True)
    places = listed.stdout.count(b"\n")
    assert 1000 <= places <= 1000 + 500 * (lasted + 1)
    assert (await traffic.refused()).counts == {BLUE: {"guest_flows_per_s": 5000 - places}}
    assert world.client.ask(OUTSIDE, 8443) == f"green {CLIENT}"
    assert await reached(BLUE) == "connected"
    with world.client.server(80):
        assert world.inside[GREEN].outcome(CLIENT, 80) == "connected"


async def test_what_is_asked_of_an_enclave_is_answered_by_it_whatever_listens_at_its_address(
    world: World, traffic: NftablesTraffic
) -> None:
    """The agent's looks at blue never come to green, nor to the host itself."""
    stolen = Listen(address=BLUE, port=PORT)
    await traffic.apply(order(2, (stolen, Endpoint(address=GREEN, port=PORT))))
    assert await ask(stolen) == "blue"  # any other process of the host, too
    assert await answer_of(BLUE) == f"blue {GATEWAY}"
    await traffic.apply(order(3, (stolen, None)))
    assert await answer_of(BLUE) == f"blue {GATEWAY}"
    everywhere = Listen(address="0.0.0.0", port=PORT)
    await traffic.apply(order(4, (everywhere, Endpoint(address=GREEN, port=PORT))))
    assert await answer_of(BLUE) == f"blue {GATEWAY}"


async def test_an_address_of_the_hosts_does_not_answer_for_an_enclave(
    world: World, traffic: NftablesTraffic
) -> None:
    ip(f"addr add {BLUE}/32 dev lo")
    with socket.create_server((BLUE, 4999)):
        assert await reached(BLUE, 4999) != "connected"
    ip(f"route add {GREEN}/32 via {CLIENT} dev trtclient")
    assert await answer_of(GREEN) == f"green {GATEWAY}"


async def test_an_enclave_that_is_not_there_is_answered_for_by_nobody(
    world: World, traffic: NftablesTraffic
) -> None:
    gone = Listen(address="10.99.7.9", port=PORT)
    await traffic.apply(order(2, (gone, Endpoint(address=GREEN, port=PORT))))
    with pytest.raises(OSError, match="Connect call failed"):
        await ask(gone)
    assert await reached("10.99.7.9") != "connected"


async def answer_of(address: str) -> str:
    """What answers to the agent itself at that address."""
    sock = await OURS.connect(Endpoint(address=address, port=PORT))
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(b"who\n")
    async with asyncio.timeout(5):
        said = (await reader.readline()).decode().strip()
    writer.close()
    return said
