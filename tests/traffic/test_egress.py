"""The egress policy against guests with stacks of their own on real taps: what they reach."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.enclaves.network import mac_of
from agent.model.egress import Refusal
from agent.model.enclave import Endpoint
from agent.model.resources import Listen
from agent.traffic.egress import EgressTable
from agent.traffic.nftables import NftablesTraffic
from tests.fakes.frames import BROADCAST, SYN, TCP, Packet, tcp
from tests.fakes.guest_card import arp
from tests.fakes.netns import ip
from tests.traffic.egress_world import (
    BLUE,
    GREEN,
    INTERNET,
    LINK_LOCAL,
    METADATA,
    PRIVATE,
    WEB,
    EgressWorld,
    egress_world,
    network,
    policy,
)
from tests.traffic.worlds import CLIENT, GATEWAY, OUTSIDE, PORTS, order

SSH = 2222
LISTEN = Listen(address=OUTSIDE, port=8443)
TABLE = "egress_enclave_agent"
BRIDGE_NF = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")

pytestmark = pytest.mark.root


@pytest.fixture
async def world(short_dir: Path) -> AsyncIterator[EgressWorld]:
    async with egress_world(short_dir, network()) as made:
        yield made


def every(addresses: tuple[str, ...], outcome: str) -> dict[str, str]:
    return dict.fromkeys(addresses, outcome)


async def test_internet_closes_private_networks_metadata_and_the_hosts_own(
    world: EgressWorld,
) -> None:
    await world.traffic(policy("internet")).start()
    assert world.opened(INTERNET) == {INTERNET: "connected"}
    closed = (*PRIVATE, *METADATA, LINK_LOCAL, CLIENT, OUTSIDE, GATEWAY)
    assert world.reached(*closed) == every(closed, "refused")
    blue = world.inside[BLUE]
    assert blue.datagram(INTERNET, 9) == "closed"
    assert blue.datagram(PRIVATE[0], 9) == "prohibited"
    assert blue.datagram(CLIENT, 9) == "prohibited"


async def test_any_closes_metadata_and_link_local_addresses_alone(world: EgressWorld) -> None:
    await world.traffic(policy("any")).start()
    opened = (INTERNET, *PRIVATE, CLIENT)
    assert world.opened(*opened) == every(opened, "connected")
    closed = (*METADATA, LINK_LOCAL, OUTSIDE, GATEWAY)
    assert world.reached(*closed) == every(closed, "refused")


async def test_none_closes_all_of_it_but_answers_to_clients(world: EgressWorld) -> None:
    traffic = world.traffic(policy("none"))
    await traffic.start()
    closed = (INTERNET, *PRIVATE, *METADATA, CLIENT, OUTSIDE, GATEWAY)
    assert world.reached(*closed) == every(closed, "refused")
    await traffic.apply(order(1, (LISTEN, Endpoint(address=GREEN, port=PORTS[0]))))
    assert world.neighbour.ask(OUTSIDE, 8443) == f"green {CLIENT}"


async def test_what_is_allowed_is_open_by_network_and_by_port_but_no_metadata(
    world: EgressWorld,
) -> None:
    allowed = policy("none", "10.0.0.0/8:80", "192.168.5.0/24:443", "169.254.0.0/16", CLIENT)
    await world.traffic(allowed).start()
    opened = ("10.1.2.3", LINK_LOCAL, CLIENT)
    assert world.opened(*opened) == every(opened, "connected")
    closed = (INTERNET, "172.31.0.9", "192.168.5.5", "169.254.169.254", "169.254.170.2")
    assert world.reached(*closed) == every(closed, "refused")
    blue = world.inside[BLUE]
    assert blue.datagram("10.1.2.3", WEB) == "closed"
    assert blue.datagram("10.1.2.3", 53) == "prohibited"
    assert blue.datagram(CLIENT, 53) == "closed"


async def test_what_the_host_opens_to_guests_stays_open_whatever_the_policy(
    world: EgressWorld,
) -> None:
    with socket.create_server(("0.0.0.0", SSH)), socket.create_server(("0.0.0.0", SSH + 1)):
        await world.traffic(policy("none"), host_ports=(SSH,)).start()
        assert world.opened(GATEWAY, port=SSH) == {GATEWAY: "connected"}
        assert world.reached(GATEWAY, port=SSH + 1) == {GATEWAY: "refused"}


async def test_metadata_that_the_host_itself_answers_or_translates_is_closed(
    world: EgressWorld,
) -> None:
    BRIDGE_NF.write_text("0")
    ip("addr add 169.254.169.254/32 dev lo")
    nft(
        "add table ip others\n"
        "add chain ip others pre { type nat hook prerouting priority -105; }\n"
        f"add rule ip others pre ip daddr 169.254.170.2 tcp dport {WEB} dnat to {GATEWAY}:{SSH}\n"
        f"add rule ip others pre ip daddr 168.63.129.16 tcp dport {WEB} dnat to {INTERNET}:{WEB}\n"
    )
    with socket.create_server(("0.0.0.0", SSH)):
        await world.traffic(policy("any"), host_ports=(SSH,)).start()
        assert world.reached("169.254.169.254", port=SSH) == {"169.254.169.254": "refused"}
        assert world.reached("169.254.170.2", "168.63.129.16") == every(
            ("169.254.170.2", "168.63.129.16"), "refused"
        )


@pytest.mark.parametrize(
    ("filtered", "told"),
    [
        pytest.param("0", "reset", id="and the guest is told"),
        pytest.param("1", "idle", id="silently where bridges are filtered as docker has it"),
    ],
)
async def test_a_stricter_policy_ends_what_was_opened_under_the_one_before(
    world: EgressWorld, filtered: str, told: str
) -> None:
    BRIDGE_NF.write_text(filtered)
    traffic = world.traffic(policy("any"))
    await traffic.start()
    await traffic.apply(order(1, (LISTEN, Endpoint(address=GREEN, port=PORTS[0]))))
    blue = world.inside[BLUE]
    blue.hold(PRIVATE[0], WEB)
    world.neighbour.hold(OUTSIDE, 8443)
    await world.traffic(policy("internet")).start()
    assert blue.held(say="still there?") == [told]
    assert world.neighbour.held(say="still there?") == ["data"]
    assert world.reached(PRIVATE[0]) == {PRIVATE[0]: "refused"}


async def test_refusals_are_counted_by_destination_and_port_the_most_frequent_first(
    world: EgressWorld,
) -> None:
    traffic = world.traffic(policy("internet"))
    await traffic.start()
    blue = world.inside[BLUE]
    for times, (address, port) in enumerate(
        (("10.1.2.3", 443), (METADATA[0], WEB), (OUTSIDE, 22))
    ):
        for _ in range(3 - times):
            assert blue.outcome(address, port) == "refused"
    assert blue.datagram("192.168.5.5", 53) == "prohibited"
    assert world.opened(INTERNET) == {INTERNET: "connected"}
    assert (await traffic.egress.ensure()).refused == (
        refused("10.1.2.3", "tcp", 443, 3),
        refused(METADATA[0], "tcp", WEB, 2),
        refused("192.0.2.1", "tcp", 22, 1),
        refused("192.168.5.5", "udp", 53, 1),
    )
    for port in range(100, 130):
        blue.outcome("10.1.2.3", port)
    shown = (await traffic.egress.ensure()).refused
    assert len(shown) == 20
    assert shown[0] == refused("10.1.2.3", "tcp", 443, 3)


def refused(destination: str, protocol: str, port: int | None, count: int) -> Refusal:
    return Refusal(destination=destination, protocol=protocol, port=port, count=count)


async def test_a_network_that_the_host_comes_onto_is_closed_at_once_and_opens_when_it_goes(
    world: EgressWorld,
) -> None:
    traffic = world.traffic(policy("internet"))
    await traffic.start()
    assert world.opened(INTERNET) == {INTERNET: "connected"}
    async with watched(traffic.egress):
        ip("addr add 203.0.113.1/24 dev trtclient")
        await becomes(world, INTERNET, "refused")
        ip("addr del 203.0.113.1/24 dev trtclient")
        await becomes(world, INTERNET, "connected")
        ip("route add 203.0.113.0/25 dev trtclient scope link table 77")
        await becomes(world, INTERNET, "refused")


async def test_a_network_that_came_while_no_agent_ran_is_closed_when_one_starts(
    world: EgressWorld,
) -> None:
    await world.traffic(policy("internet")).start()
    ip("addr add 203.0.113.1/24 dev trtclient")
    again = world.traffic(policy("internet"))
    await again.start()
    assert world.reached(INTERNET) == {INTERNET: "refused"}
    view = await again.egress.ensure()
    assert "203.0.113.0/24" in map(str, view.own_networks)


async def becomes(world: EgressWorld, address: str, outcome: str) -> None:
    """Within two seconds."""
    async with asyncio.timeout(2):
        while (await asyncio.to_thread(world.reached, address)) != {address: outcome}:
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def watched(
    table: EgressTable, show: Callable[[tuple[Refusal, ...]], None] = lambda _: None
) -> AsyncIterator[None]:
    task = asyncio.create_task(table.watch(show))
    try:
        await asyncio.sleep(0.2)
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


EDITS = {
    "deleted": f"delete table inet {TABLE}",
    "emptied": f"flush chain inet {TABLE} through_host",
    "without a refusal": f"flush chain inet {TABLE} refusing",
    "opened": f"flush table inet {TABLE}\nadd rule inet {TABLE} through_host accept",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_without_its_rules_guests_reach_nothing_until_they_are_made_anew(
    world: EgressWorld, edit: str
) -> None:
    traffic = world.traffic(policy("internet"))
    await traffic.start()
    nft(edit)
    assert world.reached(PRIVATE[0]) == {PRIVATE[0]: "timed out"}
    if edit != EDITS["without a refusal"]:
        assert world.reached(INTERNET) == {INTERNET: "timed out"}
    await traffic.egress.ensure()
    assert world.reached(INTERNET, PRIVATE[0]) == {INTERNET: "connected", PRIVATE[0]: "refused"}


async def test_what_the_kernel_does_not_track_is_held_to_the_policy_too(
    world: EgressWorld,
) -> None:
    nft(
        "add table ip others\n"
        "add chain ip others pre { type filter hook prerouting priority -300; }\n"
        "add rule ip others pre udp dport 9 notrack\n"
    )
    await world.traffic(policy("internet")).start()
    blue = world.inside[BLUE]
    assert blue.datagram(PRIVATE[0], 9) == "prohibited"
    nft(f"delete table inet {TABLE}")
    with heard("trtclient") as packets:
        assert blue.datagram(INTERNET, 9) == "unanswered"
        assert not [one for one in packets() if one[30:34] == socket.inet_aton(INTERNET)]


@contextlib.contextmanager
def heard(link: str):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind((link, 3))
        wire.setblocking(False)

        def packets() -> list[bytes]:
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(wire.recv(65536))
            return found

        yield packets


@pytest.mark.parametrize("mode", ["any", "none"])
async def test_a_scan_of_the_hosts_own_network_cannot_fill_its_neighbour_table(
    world: EgressWorld, mode: str
) -> None:
    allow = ("192.0.2.0/24",) if mode == "none" else ()
    await world.traffic(policy(mode, *allow)).start()
    assert world.opened(CLIENT) == {CLIENT: "connected"}
    scan = "".join(f"echo > /dev/udp/192.0.2.{host}/9;" for host in range(3, 255))
    pid = str(world.inside[BLUE].pid)
    subprocess.run(
        ["nsenter", "-t", pid, "-n", "bash", "-c", f"{{ {scan} }} 2>/dev/null"], check=False
    )
    entries = ip("-4 neigh show dev trtclient").splitlines()
    assert 10 <= len(entries) <= 50
    assert world.opened(CLIENT) == {CLIENT: "connected"}  # whom it speaks to already
    assert world.inside[GREEN].outcome(CLIENT, WEB) == "connected"


@pytest.mark.parametrize("filtered", ["0", "1"], ids=["", "bridges filtered as docker has it"])
async def test_a_hairpin_reaches_another_guest_by_the_hosts_listener_and_no_other_way(
    world: EgressWorld, filtered: str
) -> None:
    everywhere = Listen(address="0.0.0.0", port=8444)
    BRIDGE_NF.write_text(filtered)
    routes = order(
        1,
        (LISTEN, Endpoint(address=GREEN, port=PORTS[0])),
        (everywhere, Endpoint(address=GREEN, port=PORTS[1])),
    )
    traffic = world.traffic(policy("none"))
    await traffic.start()
    await traffic.apply(routes)
    blue = world.inside[BLUE]
    assert blue.outcome(OUTSIDE, 8443) == "refused"

    await network(hairpin=True).start()
    traffic = world.traffic(policy("none"), hairpin=True)
    await traffic.start()
    assert blue.ask(OUTSIDE, 8443) == f"green {GATEWAY}"
    assert blue.ask(OUTSIDE, 8444) == f"green {GATEWAY}"
    assert world.inside[GREEN].ask(OUTSIDE, 8443) == f"green {GATEWAY}"  # itself
    assert world.neighbour.ask(OUTSIDE, 8443) == f"green {CLIENT}"
    assert blue.outcome(OUTSIDE, 22) == "refused"
    ip(f"route add {GREEN}/32 via {GATEWAY}", blue.pid)
    assert blue.outcome(GREEN, PORTS[0]) == "refused"
    with heard("enc-greengr2") as packets:
        syn = tcp((BLUE, GREEN), (40000, PORTS[0]), SYN)
        direct = Packet(mac_of(BLUE), mac_of(GREEN), BLUE, GREEN, TCP, syn)
        everybody = arp(1, (mac_of(BLUE), BLUE), ("00:00:00:00:00:00", GATEWAY), BROADCAST)
        for frame in (direct.frame(), direct.but(to_mac=BROADCAST).frame(), everybody):
            world.guests[BLUE].send(frame)
        await asyncio.sleep(0.2)
        assert not [one for one in packets() if one[6:12].hex(":") == mac_of(BLUE)]
    await traffic.apply(order(2, (LISTEN, None), (everywhere, None)))
    assert blue.outcome(OUTSIDE, 8443) == "refused"
    await traffic.apply(order(3, (LISTEN, Endpoint(address=GREEN, port=PORTS[0]))))
    assert blue.outcome(OUTSIDE, 8443) == "connected"
    nft("flush ruleset")
    nft(
        "add table ip others\n"
        "add chain ip others pre { type nat hook prerouting priority -100; }\n"
        f"add rule ip others pre ip daddr {OUTSIDE} tcp dport 8444 dnat to {GREEN}:{PORTS[0]}\n"
    )
    assert blue.outcome(OUTSIDE, 8444) == "timed out"


@pytest.mark.parametrize(
    ("filtered", "told"),
    [
        pytest.param("0", "reset", id="and the guest is told"),
        pytest.param("1", "idle", id="silently where bridges are filtered as docker has it"),
    ],
)
async def test_a_guests_connection_by_a_hairpin_is_counted_and_reset_as_a_clients(
    world: EgressWorld, filtered: str, told: str
) -> None:
    BRIDGE_NF.write_text(filtered)
    await network(hairpin=True).start()
    traffic = world.traffic(policy("none"), hairpin=True)
    await traffic.start()
    green = Endpoint(address=GREEN, port=PORTS[0])
    await traffic.apply(order(1, (LISTEN, green)))
    blue = world.inside[BLUE]
    blue.hold(OUTSIDE, 8443)
    assert await traffic.connections(green) == 1
    assert await traffic.reset(green) == 1
    assert blue.held() == [told]


async def test_everything_of_it_is_gone_after_an_uninstall(world: EgressWorld) -> None:
    traffic: NftablesTraffic = world.traffic(policy("internet"))
    await traffic.start()
    await traffic.restore()
    listed = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True)
    assert listed.stdout == ""


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)
