from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from agent.enclaves.devices import open_tap
from agent.enclaves.network import NetworkError, mac_of
from agent.enclaves.network_tap import TapNetwork
from agent.enclaves.spec import TapNic
from agent.enclaves.tap_probe import probe_tap
from agent.host.commands import CommandError, CompletedCommand, run_command
from agent.model.ids import EnclaveId
from agent.model.marks import TO_GUEST
from tests.fakes.guest_card import ARP, IPV4, Card, arp, frame
from tests.fakes.kernel_links import kernel
from tests.fakes.netns import ip, own_host

BRIDGE = "vnt0"
SUBNET = "198.18.7.0/24"
BLUE, GREEN = EnclaveId("blueblue"), EnclaveId("greengr2")
BLUE_TAP, GREEN_TAP = "enc-blueblue", "enc-greengr2"
BLUE_ADDRESS, GREEN_ADDRESS = "198.18.7.2", "198.18.7.3"
EVERYBODY = "ff:ff:ff:ff:ff:ff"


def tap_network(subnet: str = SUBNET, *, instance: str = "one", **more: object) -> TapNetwork:
    return TapNetwork(BRIDGE, subnet, instance=instance, **more)  # type: ignore[arg-type]


@pytest.fixture
def alone() -> Iterator[None]:
    with own_host():
        yield


class CutShort:
    """Runs tools until so many lines of change were carried out; then the agent 'dies'."""

    def __init__(self, lines: int) -> None:
        self.left = lines

    async def __call__(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        wanted = stdin.decode().splitlines(keepends=True)
        now, self.left = wanted[: self.left], self.left - len(wanted)
        done = await run_command(argv, stdin="".join(now).encode())
        if self.left < 0:
            raise CommandError(argv, "was cut short")
        return done


pytestmark = pytest.mark.root


async def test_a_guest_gets_a_tap_on_the_bridge(alone: None) -> None:
    network = tap_network()
    await network.start()
    nic = await network.attach(BLUE, BLUE_ADDRESS, (443,))
    assert nic == TapNic(BLUE_TAP, "02:00:c6:12:07:02")
    shown = json.loads(ip(f"-j -d link show dev {BLUE_TAP}"))[0]
    assert shown["master"] == BRIDGE
    assert shown["linkinfo"]["info_slave_data"]["isolated"] is True
    assert shown["linkinfo"]["info_slave_data"]["learning"] is False
    assert "UP" in shown["flags"]
    assert json.loads(ip(f"-j -4 addr show dev {BRIDGE}"))[0]["addr_info"][0]["local"] == (
        "198.18.7.1"
    )
    assert ip("-6 addr show scope link").strip() == ""
    assert await network.list_attached() == {BLUE}


async def test_restore_leaves_the_kernel_as_it_was(alone: None) -> None:
    before = kernel()
    network = tap_network()
    await network.start()
    await network.attach(BLUE, BLUE_ADDRESS, (443,))
    await network.attach(GREEN, GREEN_ADDRESS, (443,))
    assert kernel() != before
    await network.restore()
    assert kernel() == before
    await network.restore()
    assert kernel() == before


async def test_doing_everything_twice_changes_nothing(alone: None) -> None:
    network = tap_network()
    await network.start()
    await network.attach(BLUE, BLUE_ADDRESS, (443,))
    once = kernel()
    again = tap_network()
    await again.start()
    await again.attach(BLUE, BLUE_ADDRESS, (443,))
    assert kernel() == once
    await again.detach(BLUE)
    await again.detach(BLUE)
    assert await again.list_attached() == set()
    assert ip("neigh show nud permanent") == ""


async def test_an_agent_that_dies_anywhere_is_taken_up_by_the_next(alone: None) -> None:
    before = kernel()
    await tap_network().start()
    started = kernel()
    await tap_network().attach(BLUE, BLUE_ADDRESS, (443,))
    attached = kernel()
    await tap_network().restore()
    lines = 0
    while True:
        cut = CutShort(lines)
        dying = tap_network(run=cut)
        try:
            await dying.start()
            await dying.attach(BLUE, BLUE_ADDRESS, (443,))
        except NetworkError:
            lines += 1
        await tap_network().start()
        await tap_network().attach(BLUE, BLUE_ADDRESS, (443,))
        assert kernel() == attached, lines
        await tap_network().restore()
        assert kernel() == before, lines
        if cut.left >= 0:
            break
    assert lines > 8
    assert started != attached


async def test_an_unfinished_attach_is_undone_by_detach(alone: None) -> None:
    await tap_network().start()
    started = kernel()
    lines = 0
    while True:
        cut = CutShort(lines)
        try:
            await tap_network(run=cut).attach(BLUE, BLUE_ADDRESS, (443,))
        except NetworkError:
            lines += 1
        await tap_network().detach(BLUE)
        assert kernel() == started, lines
        if cut.left >= 0:
            break
    assert lines > 5


async def test_an_unfinished_detach_is_finished_by_the_next(alone: None) -> None:
    await tap_network().start()
    started = kernel()
    lines = 0
    while True:
        await tap_network().attach(BLUE, BLUE_ADDRESS, (443,))
        cut = CutShort(lines)
        try:
            await tap_network(run=cut).detach(BLUE)
        except NetworkError:
            lines += 1
        await tap_network().detach(BLUE)
        assert kernel() == started, lines
        if cut.left >= 0:
            break
    assert lines == 3


async def test_a_tap_is_removed_even_if_its_bridge_is_gone(alone: None) -> None:
    before = kernel()
    await tap_network().start()
    await tap_network().attach(BLUE, BLUE_ADDRESS, (443,))
    ip(f"link delete dev {BRIDGE}")
    await tap_network().detach(BLUE)
    assert kernel() == before


async def test_a_tap_that_lost_its_bridge_gets_it_back(alone: None) -> None:
    await tap_network().start()
    await tap_network().attach(BLUE, BLUE_ADDRESS, (443,))
    whole = kernel()
    ip(f"link delete dev {BRIDGE}")
    await tap_network().start()
    assert kernel() == whole


async def test_a_bridge_of_somebody_else_is_refused_and_left_alone(alone: None) -> None:
    ip(f"link add name {BRIDGE} type bridge")
    before = kernel()
    network = tap_network()
    with pytest.raises(NetworkError, match=r"network\.bridge: a link vnt0 is there that this"):
        await network.start()
    with pytest.raises(NetworkError, match=r"network\.bridge"):
        await network.attach(BLUE, BLUE_ADDRESS, (443,))
    await network.restore()
    assert kernel() == before


async def test_the_bridge_of_another_agent_is_refused(alone: None) -> None:
    await tap_network(instance="other").start()
    with pytest.raises(NetworkError, match=r"network\.bridge"):
        await tap_network().start()


async def test_a_link_of_somebody_else_under_a_taps_name_is_left_alone(alone: None) -> None:
    network = tap_network()
    await network.start()
    ip(f"link add name {BLUE_TAP} type bridge")
    before = kernel()
    with pytest.raises(NetworkError, match=f"a link {BLUE_TAP} is there"):
        await network.attach(BLUE, BLUE_ADDRESS, (443,))
    await network.detach(BLUE)
    assert kernel() == before
    assert await network.list_attached() == set()


async def test_taps_of_another_agent_are_not_ours(alone: None) -> None:
    network = tap_network()
    await network.start()
    ip(f"tuntap add dev {BLUE_TAP} mode tap")
    ip(f"link set dev {BLUE_TAP} alias enclave-agent-of-another")
    before = kernel()
    await network.detach(BLUE)
    assert kernel() == before
    assert await network.list_attached() == set()


@pytest.mark.parametrize("other", ["198.18.7.9/32", "198.18.0.0/16", "198.18.7.128/25"])
async def test_a_subnet_that_is_routed_elsewhere_is_refused(alone: None, other: str) -> None:
    ip("link add name vnt-other type bridge")
    ip("link set dev vnt-other up")
    ip(f"route add {other} dev vnt-other")
    before = kernel()
    with pytest.raises(NetworkError) as caught:
        await tap_network().start()
    assert str(caught.value) == (
        f"network.subnet {SUBNET} overlaps {other} on vnt-other, which this host already routes: "
        "choose another network.subnet"
    )
    assert kernel() == before


async def test_a_default_route_is_no_overlap(alone: None) -> None:
    ip("link add name vnt-other type bridge")
    ip("link set dev vnt-other up")
    for half in ("default", "0.0.0.0/1", "128.0.0.0/1"):
        ip(f"route add {half} dev vnt-other")
    await tap_network().start()


async def test_the_subnet_changes_only_when_nobody_lives_in_it(alone: None) -> None:
    await tap_network().start()
    await tap_network().attach(BLUE, BLUE_ADDRESS, (443,))
    before = kernel()
    with pytest.raises(NetworkError, match=r"still serves enclaves of 198\.18\.7\.1/24: stop"):
        await tap_network("198.18.8.0/24").start()
    assert kernel() == before
    await tap_network().detach(BLUE)
    await tap_network("198.18.8.0/24").start()
    assert "198.18.8.1/24" in ip("-o -4 addr show")
    assert "198.18.7.1" not in ip("-o -4 addr show")


async def test_another_address_takes_the_place_of_the_old_one(alone: None) -> None:
    network = tap_network()
    await network.start()
    await network.attach(BLUE, BLUE_ADDRESS, (443,))
    await network.attach(BLUE, GREEN_ADDRESS, (443,))
    neighbours = ip("neigh show nud permanent")
    assert GREEN_ADDRESS in neighbours
    assert BLUE_ADDRESS not in neighbours


async def test_a_tap_is_nobodys_but_roots_and_is_given_open(alone: None) -> None:
    network = tap_network()
    await network.start()
    await network.attach(BLUE, BLUE_ADDRESS, (443,))
    shown = json.loads(ip(f"-j -d link show dev {BLUE_TAP}"))[0]
    assert "user" not in shown["linkinfo"]["info_data"]
    with ExitStack() as held:
        assert open_tap(held, BLUE_TAP) > 2
        with pytest.raises(NetworkError, match=f"cannot open the tap {BLUE_TAP}"):
            open_tap(held, BLUE_TAP)  # one end, one holder
    await network.attach(BLUE, BLUE_ADDRESS, (443,))
    again = json.loads(ip(f"-j link show dev {BLUE_TAP}"))[0]
    assert again["ifindex"] == shown["ifindex"]
    # One that a user may open, as an earlier version made it, is made anew.
    ip(f"tuntap delete dev {BLUE_TAP} mode tap")
    ip(f"tuntap add dev {BLUE_TAP} mode tap user 65534")
    await network.attach(BLUE, BLUE_ADDRESS, (443,))
    shown = json.loads(ip(f"-j -d link show dev {BLUE_TAP}"))[0]
    assert "user" not in shown["linkinfo"]["info_data"]


def port_state(tap: str) -> str:
    shown = json.loads(ip(f"-j -d link show dev {tap}"))[0]
    return str(shown["linkinfo"]["info_slave_data"]["state"])


@pytest.fixture
async def cards(alone: None) -> object:
    network = tap_network()
    await network.start()
    pair = []
    for enclave, address in ((BLUE, BLUE_ADDRESS), (GREEN, GREEN_ADDRESS)):
        nic = await network.attach(enclave, address, (443,))
        pair.append(Card(nic.name))
        while port_state(nic.name) != "forwarding":  # the kernel sees the carrier in its own time
            await asyncio.sleep(0.01)
    yield pair
    for card in pair:
        card.close()


def say(to: str, text: bytes) -> None:
    """As the agent itself does: what is unmarked passes no tap without our table."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TO_GUEST)
        host.sendto(text, (to, 9))


def bridge_mac() -> str:
    return str(json.loads(ip(f"-j link show dev {BRIDGE}"))[0]["address"])


async def test_a_guest_reaches_the_gateway_and_no_other_guest(cards: list[Card]) -> None:
    blue, green = cards
    blue_mac, green_mac = mac_of(BLUE_ADDRESS), mac_of(GREEN_ADDRESS)
    blue.send(arp(1, (blue_mac, BLUE_ADDRESS), ("00:" * 5 + "00", "198.18.7.1"), EVERYBODY))
    assert blue.next_of(ARP)[6:12].hex(":") == bridge_mac()
    for to in (green_mac, EVERYBODY, "01:00:5e:00:00:05"):
        blue.send(frame(to, blue_mac, b"psst"))
    say(GREEN_ADDRESS, b"the host's, after all of blue's")
    green.next_of(IPV4)
    assert [each for each in green.others if b"psst" in each] == []


async def test_no_guest_takes_over_the_address_of_another(cards: list[Card]) -> None:
    blue, green = cards
    blue_mac, green_mac = mac_of(BLUE_ADDRESS), mac_of(GREEN_ADDRESS)
    gateway = (bridge_mac(), "198.18.7.1")
    blue.send(arp(2, (blue_mac, GREEN_ADDRESS), gateway, gateway[0]))
    blue.send(arp(2, (green_mac, GREEN_ADDRESS), gateway, gateway[0]))
    say(GREEN_ADDRESS, b"for green")
    say(BLUE_ADDRESS, b"for blue")
    got = green.next_of(IPV4)
    assert got.endswith(b"for green")
    assert got[:6].hex(":") == green_mac
    assert blue.next_of(IPV4).endswith(b"for blue")


async def test_a_scratch_namespace_shows_that_taps_can_be_made() -> None:
    before = ip("-o link show")
    assert await probe_tap() is None
    assert "probe" not in ip("-o link show")
    assert "probe" not in before


async def test_the_reason_why_taps_cannot_be_made_is_told() -> None:
    async def refused(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        return await run_command(["setpriv", "--bounding-set=-all", "--", *argv], stdin=stdin)

    reason = await probe_tap(run=refused)
    assert reason is not None
    assert os.strerror(errno.EPERM) in reason
