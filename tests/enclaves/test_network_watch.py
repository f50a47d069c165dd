"""Somebody changes what is ours of the host's links while the agent watches."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from agent.enclaves import link_news
from agent.enclaves.devices import open_tap
from agent.enclaves.network import NetworkError
from agent.enclaves.network_tap import TapNetwork
from agent.host.network_news import NetworkNews
from agent.model.ids import EnclaveId
from tests.fakes.kernel_links import kernel
from tests.fakes.netns import ip, own_host

BRIDGE, SUBNET = "vnw0", "198.18.9.0/24"
BLUE, GREEN = EnclaveId("blueblue"), EnclaveId("greengr2")
TAP, ADDRESS = "enc-blueblue", "198.18.9.2"
WITHIN_S = 30.0  # of a machine that has other things to do

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def by_news_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is found because the kernel told of it: no look by the clock comes in time."""
    monkeypatch.setattr(link_news, "_AT_THE_LATEST_S", 3600.0)


class Watched:
    """A network with two guests' taps, watched. QEMU's ends are held open, as QEMU does."""

    def __init__(self) -> None:
        self.time = 0.0
        self.news = NetworkNews(lambda: self.time)
        self.network = TapNetwork(BRIDGE, SUBNET, instance="one", news=self.news)

    def calm(self) -> None:
        """A long time passes for whoever counts how often there was something."""
        self.time += 1000

    def events(self) -> list[str]:
        return [one.reason or "" for one in self.news.take()]


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    with own_host(), ExitStack() as held:
        ip("link add name uplink0 type bridge")
        ip("addr add 192.0.2.1/24 dev uplink0")
        ip("link set uplink0 up")
        made = Watched()
        await made.network.start()
        for enclave, address in ((BLUE, ADDRESS), (GREEN, "198.18.9.3")):
            await made.network.attach(enclave, address, (443,))
            open_tap(held, f"enc-{enclave}")
        task = asyncio.create_task(made.network.watch())
        await until(lambda: made.network._indexes)  # it has looked, and listens
        await asyncio.sleep(0.5)  # what was done to the links before is heard of
        assert made.events() == []
        yield made
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def state() -> dict[str, object]:
    """As it is to be again: what a cable does (carrier) and when a link was made aside."""
    seen = kernel()
    seen["neighbours"] = sorted(str(seen["neighbours"]).splitlines())
    routes = [line.removesuffix(" linkdown").strip() for line in str(seen["routes"]).splitlines()]
    return {**seen, "routes": sorted(line.replace(" linkdown", "") for line in routes)}


def forwarding() -> list[object]:
    shown = json.loads(run_bridge(f"-j fdb show br {BRIDGE}", check=False) or "[]")
    return sorted(str(row) for row in shown if row.get("state") == "static")


def run_bridge(arguments: str, *, check: bool = True) -> str:
    argv = ["bridge", *arguments.split()]
    return subprocess.run(argv, check=check, capture_output=True, text=True).stdout


DAMAGES = {
    "bridge deleted": (f"link delete dev {BRIDGE}", "it was deleted"),
    "address flushed": (f"address flush dev {BRIDGE}", "its address 198.18.9.1/24 was taken away"),
    "bridge down": (f"link set dev {BRIDGE} down", "it was set down"),
    "bridge renamed": (f"link set dev {BRIDGE} name other0", "it was deleted"),
    "bridge's card": (
        f"link set dev {BRIDGE} address 02:00:00:00:00:99",
        "its hardware address was changed to 02:00:00:00:00:99",
    ),
    "bridge's alias": (f"link set dev {BRIDGE} alias mine", "its alias was changed"),
    "spanning tree": (
        f"link set dev {BRIDGE} type bridge stp_state 1",
        "the spanning tree protocol was turned on",
    ),
    "arp off": (f"link set dev {BRIDGE} arp off", "ARP was turned off"),
    "route deleted": (
        f"route delete {SUBNET} dev {BRIDGE}",
        "the route to 198.18.9.0/24 was taken",
    ),
    "tap off its bridge": (f"link set dev {TAP} nomaster", "it was taken off its bridge"),
    "tap down": (f"link set dev {TAP} down", "it was set down"),
    "tap's alias": (f"link set dev {TAP} alias x", "its alias was changed"),
    "isolation": (
        f"link set dev {TAP} type bridge_slave isolated off learning on",
        "its port was changed (isolated, learning)",
    ),
    "neighbour deleted": (
        f"neighbour delete {ADDRESS} dev {BRIDGE}",
        "the neighbour entry of 198.18.9.2 was changed",
    ),
    "neighbour changed": (
        f"neighbour replace {ADDRESS} lladdr 02:00:00:00:00:99 dev {BRIDGE} nud permanent",
        "the neighbour entry of 198.18.9.2 was changed",
    ),
}


async def test_what_somebody_changes_is_soon_as_it_was_and_told(watched: Watched) -> None:
    whole, table = state(), forwarding()
    for name, (damage, told) in DAMAGES.items():
        ip(damage)
        began = time.monotonic()
        events: list[str] = []
        while not any(told in one and one.endswith("; put back") for one in events):
            await asyncio.sleep(0.02)
            events += watched.events()
            assert time.monotonic() - began < WITHIN_S, (name, events)
        while (state(), forwarding()) != (whole, table):
            assert time.monotonic() - began < WITHIN_S, name
            await asyncio.sleep(0.02)
        watched.calm()
    assert watched.news.problems == {}
    assert watched.news.repairs["link"] >= len(DAMAGES)
    stp = json.loads(ip(f"-j -d link show dev {BRIDGE}"))[0]["linkinfo"]["info_data"]
    assert (stp["stp_state"], stp["forward_delay"]) == (0, 0)
    await asyncio.sleep(0.8)  # its own changes are no news to it
    assert watched.events() == []


async def test_a_tap_put_into_another_bridge_and_its_forwarding_entry_come_back(
    watched: Watched,
) -> None:
    whole, table = state(), forwarding()
    ip("link add name vnwother type bridge")
    ip(f"link set dev {TAP} master vnwother")
    await until(lambda: forwarding() == table)
    ip("link delete dev vnwother")
    assert state() == whole
    mac = "02:00:c6:12:09:02"
    run_bridge(f"fdb delete {mac} dev {TAP} master")
    await until(lambda: forwarding() == table)
    assert "it was put into vnwother" in " ".join(watched.events())


async def until(holds: object) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_a_tap_that_was_deleted_is_a_problem_until_its_enclave_is_gone(
    watched: Watched,
) -> None:
    ip(f"link delete dev {TAP}")
    await until(lambda: watched.news.problems)
    (problem,) = watched.news.problems.values()
    assert (problem.code, problem.severity) == ("tap_lost", "error")
    assert "enclave blueblue" in problem.detail
    assert "enclave-agent relaunch" in problem.mend
    assert len(watched.events()) == 1
    await watched.network.detach(BLUE)
    ip(f"link set dev {BRIDGE} down")  # any reason to look again
    await until(lambda: not watched.news.problems)
    assert watched.events()


@pytest.mark.parametrize("route", ["198.18.9.0/24", "198.18.9.2/32"])
async def test_another_way_to_the_guests_is_told_as_long_as_it_is_there(
    watched: Watched, route: str
) -> None:
    ip(f"route add {route} dev uplink0 metric 7")
    await until(lambda: "subnet" in watched.news.problems)
    problem = watched.news.problems["subnet"]
    assert problem.code == "subnet_taken"
    assert f"{route} on uplink0" in problem.detail
    ip(f"route delete {route} dev uplink0")
    await until(lambda: not watched.news.problems)


async def test_a_wider_route_is_none_of_ours(watched: Watched) -> None:
    ip("route add 198.18.0.0/15 dev uplink0")
    ip("route add blackhole 203.0.113.0/24")
    await asyncio.sleep(0.5)
    assert watched.news.problems == {}


async def test_a_bridge_of_somebody_else_in_our_place_is_told_and_left_alone(
    watched: Watched,
) -> None:
    lines = f"link delete dev {BRIDGE}\nlink add name {BRIDGE} type bridge\n"
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    theirs = json.loads(ip(f"-j -d addr show dev {BRIDGE}"))[0]
    await until(lambda: "links" in watched.news.problems)
    problem = watched.news.problems["links"]
    assert problem.code == "network_unavailable"
    assert "network.bridge: a link vnw0 is there that this agent did not make" in problem.detail
    assert json.loads(ip(f"-j -d addr show dev {BRIDGE}"))[0]["addr_info"] == theirs["addr_info"]


async def test_a_program_that_insists_is_not_run_against_without_end(watched: Watched) -> None:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        ip(f"link set dev {TAP} down")
        await asyncio.sleep(0.02)
    assert 5 <= watched.news.repairs["link"] <= 15
    await until(lambda: "UP" in json.loads(ip(f"-j link show dev {TAP}"))[0]["flags"])


async def test_what_changes_of_other_links_is_no_reason_to_look(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = watched.network._links.look

    async def counting() -> object:
        nonlocal looks
        looks += 1
        return await look()

    monkeypatch.setattr(watched.network._links, "look", counting)
    for number in range(20):
        ip(f"neighbour replace 192.0.2.{number + 9} lladdr 02:00:00:00:00:99 dev uplink0")
        ip(f"link set dev uplink0 mtu {1400 + number}")
    await asyncio.sleep(0.5)
    assert looks == 0


async def test_another_name_of_the_bridge_moves_what_runs(watched: Watched) -> None:
    moved = TapNetwork("vnw1", SUBNET, instance="one")
    await moved.start()
    links = {row["ifname"]: row for row in json.loads(ip("-j -d addr show"))}
    assert BRIDGE not in links
    assert [one["local"] for one in links["vnw1"]["addr_info"]] == ["198.18.9.1"]
    assert links[TAP]["master"] == "vnw1"
    assert "UP" in links[TAP]["flags"]
    assert f"{ADDRESS} dev vnw1" in ip("neigh show nud permanent")
    assert await moved.list_attached() == {BLUE, GREEN}


async def test_another_subnet_is_refused_by_name_before_anything_is_touched(
    watched: Watched,
) -> None:
    before = state()
    with pytest.raises(NetworkError, match=r"network\.subnet: bridge vnw0 still serves enclaves"):
        await TapNetwork("vnw1", "198.18.10.0/24", instance="one").start()
    with pytest.raises(NetworkError, match=r"network\.subnet: .* 198\.18\.9\.1/24: stop them"):
        await TapNetwork(BRIDGE, "198.18.8.0/23", instance="one").start()  # another gateway
    assert state() == before
