"""Another program changes our table or the host's forwarding while the agent watches."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent.host.network_news import NetworkNews
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic import nftables_watch
from agent.traffic.foreign_watch import ForeignRules
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.nftables_watch import NftablesWatch
from tests.fakes.netns import ip, join
from tests.traffic.clients import ask
from tests.traffic.remote import Remote
from tests.traffic.worlds import (
    BRIDGE,
    CLIENT,
    OUTSIDE,
    SUBNET,
    NftablesWorld,
    free_listen,
    order,
)

WITHIN_S = 30.0  # of a machine that has other things to do
OTHER_SIDE, OTHER_HOST = "198.51.100.1", "198.51.100.2"
TABLE = "enclave_agent"
PUT_BACK = re.compile(r"; put back after \d+\.\d\d s$")
ALL = Path("/proc/sys/net/ipv4/conf/all/forwarding")

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def by_news_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is found because the kernel told of it: no look by the clock comes in time."""
    for look_s in ("_AT_THE_LATEST_S", "_WHILE_WRONG_S"):
        monkeypatch.setattr(nftables_watch, look_s, 3600.0)


def nft(text: str) -> str:
    argv = ["nft", "-f", "-"]
    return subprocess.run(argv, input=text, check=True, capture_output=True, text=True).stdout


def listed(*what: str) -> str:
    argv = ["nft", "-s", "list", *what]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout


def tables() -> str:
    return listed("table", "inet", TABLE) + listed("chain", "bridge", TABLE, "from_guests")


class Watched:
    def __init__(self, host: NftablesWorld) -> None:
        self.time = 0.0
        self.news = NetworkNews(lambda: self.time)
        self.traffic = host.traffic()
        foreign = ForeignRules(BRIDGE, SUBNET, TABLE)
        self.watch = NftablesWatch(self.traffic, foreign, self.news)

    def events(self) -> list[tuple[str | None, str | None, str]]:
        self.time += 1000
        return [(one.deployment, one.to, one.reason or "") for one in self.news.take()]


@contextlib.asynccontextmanager
async def watching(host: NftablesWorld) -> AsyncIterator[Watched]:
    made = Watched(host)
    await made.traffic.start()
    task = asyncio.create_task(made.watch.run())
    await until(lambda: not made.watch._owed)  # it has looked, and listens
    yield made
    assert not task.done(), task.exception()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def watched(host: NftablesWorld) -> AsyncIterator[Watched]:
    async with watching(host) as made:
        assert made.events() == []
        yield made


async def until(holds: Callable[[], object]) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < WITHIN_S
        await asyncio.sleep(0.02)


def handle_of(chain: str, number: int) -> str:
    lines = subprocess.run(
        ["nft", "-a", "list", "chain", "inet", TABLE, chain],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    rules = [line for line in lines if "comment" in line]
    return rules[number].rpartition("handle ")[2]


async def test_what_another_takes_from_our_table_is_soon_back_and_told(
    host: NftablesWorld, watched: Watched
) -> None:
    listen, other = free_listen(), free_listen()
    await watched.traffic.apply(order(4, (listen, host.endpoint("blue"))))
    await watched.traffic.apply(order(7, (other, host.endpoint("green")), deployment="other"))
    older = "flush ruleset\n" + listed("ruleset")
    await watched.traffic.apply(order(5, (listen, host.endpoint("green"))))
    whole = tables()
    key = f"{listen.address} . {listen.port}"
    damages = {
        "everything": ("flush ruleset", {"hello", "other"}),
        "an older ruleset": (older, {"hello"}),
        "one element": (f"delete element inet {TABLE} exact {{ {key} }}", {"hello"}),
        "another target": (
            f"delete element inet {TABLE} exact {{ {key} }}\n"
            f"add element inet {TABLE} exact {{ {key} : 10.99.7.9 . 1 }}",
            {"hello"},
        ),
        "a map": (f"flush map inet {TABLE} exact", {"hello", "other"}),
        "the orders": (f"flush set inet {TABLE} orders", {"hello", "other"}),
        "one table": (f"delete table bridge {TABLE}", {"hello", "other"}),
        "a chain": (f"flush chain inet {TABLE} dispatch", {"hello", "other"}),
        "a rule": ("", {"hello", "other"}),  # each repair makes rules with other handles
        "a rule of theirs": (f"insert rule inet {TABLE} through_host drop", {"hello", "other"}),
        "a policy": (f"add chain inet {TABLE} to_host {{ policy drop; }}", {"hello", "other"}),
        "a listener of theirs": (
            f"add element inet {TABLE} listeners {{ 192.0.2.9 . 1 }}",
            {"hello", "other"},
        ),
    }
    for name, (damage, hit) in damages.items():
        watched.events()
        handle = handle_of("through_host", 1)
        nft(damage or f"delete rule inet {TABLE} through_host handle {handle}")
        await until(lambda: watched.news.repairs["data_plane"] and tables() == whole)
        assert [await ask(listen), await ask(other)] == ["green", "green"], name
        events = watched.events()
        assert {one for one, *_ in events} == hit, (name, events)
        assert all(to == "repaired" and PUT_BACK.search(why) for _, to, why in events)
        watched.news.repairs.clear()
    await asyncio.sleep(0.5)
    assert watched.events() == []  # its own transactions are no news to it
    assert watched.news.problems == {}


async def test_many_deployments_have_one_event_together(
    host: NftablesWorld, watched: Watched
) -> None:
    for number in range(9):
        listen = Listen(address="127.0.0.1", port=21000 + number)
        await watched.traffic.apply(
            order(1, (listen, host.endpoint("blue")), deployment=f"d{number}")
        )
    nft("flush ruleset")
    await until(lambda: watched.news.repairs["data_plane"])
    ((deployment, to, why),) = watched.events()
    assert (deployment, to) == (None, "repaired")
    assert all(f"d{number}" in why for number in range(9))


async def test_a_deployment_that_was_removed_does_not_come_back_with_an_older_ruleset(
    host: NftablesWorld, watched: Watched
) -> None:
    listen = free_listen()
    await watched.traffic.apply(order(4, (listen, host.endpoint("blue"))))
    older = listed("ruleset")
    await watched.traffic.remove(DeploymentName("hello"))
    nft(f"flush ruleset\n{older}")
    await until(lambda: watched.news.repairs["data_plane"])
    assert await watched.traffic.observe() == {}
    with pytest.raises(ConnectionRefusedError):
        await ask(listen)


async def test_own_orders_and_others_sets_are_no_reason_to_mend_or_read_rules(
    host: NftablesWorld, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = watched.watch._foreign.look

    async def counting() -> object:
        nonlocal looks
        looks += 1
        return await look()

    monkeypatch.setattr(watched.watch._foreign, "look", counting)
    nft("add table inet f2b\nadd set inet f2b bad { type ipv4_addr; }")
    await until(lambda: looks and not watched.watch._owed)
    before = looks
    listen = free_listen()
    for generation in range(1, 6):
        await watched.traffic.apply(order(generation, (listen, host.endpoint("blue"))))
        nft(f"add element inet f2b bad {{ 203.0.113.{generation} }}")
    await asyncio.sleep(0.5)
    assert looks == before
    assert watched.events() == []
    nft("add chain inet f2b fw { type filter hook forward priority 0; policy drop; }")
    await until(lambda: watched.news.problems)
    assert looks == before + 1


async def test_a_program_that_drops_what_is_forwarded_is_told_until_it_does_not(
    watched: Watched,
) -> None:
    nft(
        "add table ip filter\nadd chain ip filter FORWARD { type filter hook forward priority 0; }"
    )
    await asyncio.sleep(0.3)
    assert watched.news.problems == {}
    nft("add chain ip filter FORWARD { policy drop; }")
    await until(lambda: watched.news.problems)
    ((key, problem),) = watched.news.problems.items()
    assert (key, problem.code) == ("rules:ip/filter/FORWARD", "forward_dropped")
    assert [(to, why) for _, to, why in watched.events()] == [("forward_dropped", problem.detail)]
    nft(f"add rule ip filter FORWARD iifname {BRIDGE} accept")
    nft(f"add rule ip filter FORWARD oifname {BRIDGE} accept")
    await until(lambda: not watched.news.problems)
    assert [to for _, to, _ in watched.events()] == ["mended"]


@pytest.fixture
def routed(host: NftablesWorld) -> Iterator[tuple[Remote, Remote]]:
    """Machines on two sides of the host, each with the host as its way to the other."""
    with Remote() as client, Remote() as other:
        join(client.pid, link="trtclient", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtclient")
        join(other.pid, link="trtother", address=f"{OTHER_HOST}/24", gateway=OTHER_SIDE)
        ip(f"addr add {OTHER_SIDE}/24 dev trtother")
        with client.server(7000), other.server(7000):
            yield client, other


def forwarding(link: str) -> str:
    return Path(f"/proc/sys/net/ipv4/conf/{link}/forwarding").read_text().strip()


async def test_a_host_that_does_not_forward_becomes_a_router_for_nobody(
    host: NftablesWorld, routed: tuple[Remote, Remote]
) -> None:
    client, other = routed
    ip("link add name trtvirbr type bridge")
    ip("addr add 192.168.122.1/24 dev trtvirbr")
    listen = Listen(address="0.0.0.0", port=8443)
    async with watching(host) as watched:
        await watched.traffic.apply(order(1, (listen, host.endpoint("blue"))))
        assert ALL.read_text().strip() == "0"
        assert [forwarding(link) for link in (BRIDGE, "trtclient", "trtother")] == ["1"] * 3
        assert [forwarding(link) for link in ("trtvirbr", "trtblue", "default")] == ["0"] * 3
        assert client.ask(OUTSIDE, 8443) == f"blue {CLIENT}"
        assert other.ask(OTHER_SIDE, 8443) == f"blue {OTHER_HOST}"
        with Remote(host.servers["blue"].pid) as blue:
            assert blue.ask(CLIENT, 7000) == f"remote {OUTSIDE}"
        assert client.outcome(OTHER_HOST, 7000) == "timed out"
        assert other.outcome(CLIENT, 7000) == "timed out"

        ALL.write_text("1")  # whoever wants a router
        await until(lambda: "elements" not in listed("set", "inet", TABLE, "fenced"))
        assert client.outcome(OTHER_HOST, 7000) == "connected"
        await until(lambda: watched.news.changed.count)
        ((_, to, why),) = watched.events()
        assert to == "router"
        assert "net.ipv4.conf.all.forwarding was turned on" in why

        ALL.write_text("0")  # which turns it off everywhere
        await until(lambda: forwarding("trtclient") == "1")
        assert client.outcome(OTHER_HOST, 7000) == "timed out"
        assert client.ask(OUTSIDE, 8443) == f"blue {CLIENT}"
        told = watched.events()
        assert {to for _, to, _ in told} == {"repaired", "host"}
    await host.traffic().restore()
    assert [forwarding(link) for link in ("trtclient", "trtother")] == ["0"] * 2


async def test_a_router_that_was_there_first_is_left_alone(
    host: NftablesWorld, routed: tuple[Remote, Remote]
) -> None:
    client, _ = routed
    ALL.write_text("1")
    async with watching(host):
        assert "elements" not in listed("set", "inet", TABLE, "fenced")
        assert client.outcome(OTHER_HOST, 7000) == "connected"
        assert not host.state_file.exists() or "forwarding" not in host.state_file.read_text()
    await host.traffic().restore()
    assert client.outcome(OTHER_HOST, 7000) == "connected"


async def test_an_uninstall_leaves_a_router_that_came_later_alone(
    host: NftablesWorld, routed: tuple[Remote, Remote]
) -> None:
    client, _ = routed
    async with watching(host):
        ALL.write_text("1")
    await host.traffic().restore()
    assert client.outcome(OTHER_HOST, 7000) == "connected"


async def test_links_that_come_later_are_let_forward_and_fenced(
    host: NftablesWorld, watched: Watched
) -> None:
    listen = Listen(address="0.0.0.0", port=8443)
    await watched.traffic.apply(order(1, (listen, host.endpoint("blue"))))
    with Remote() as client:
        join(client.pid, link="trtlate", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtlate")
        await until(lambda: forwarding("trtlate") == "1")
        assert "trtlate" in listed("set", "inet", TABLE, "fenced")
        assert client.ask(OUTSIDE, 8443) == f"blue {CLIENT}"
        assert watched.events() == []


async def test_a_bridge_that_is_made_later_is_nothing_that_was_turned_off(
    host: NftablesWorld,
) -> None:
    ip(f"link set {BRIDGE} name trtaside")
    async with watching(host) as watched:
        ip(f"link set trtaside name {BRIDGE}")
        ip(f"addr add 10.99.7.99/32 dev {BRIDGE}")  # the kernel says so
        await until(lambda: forwarding(BRIDGE) == "1")
        assert watched.events() == []


async def test_the_fence_is_there_before_a_link_forwards(host: NftablesWorld) -> None:
    """An agent that dies in between leaves a host that forwards for nobody."""
    with Remote() as client:
        join(client.pid, link="trtclient", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtclient")
        traffic = host.traffic()

        def die(off: frozenset[str]) -> None:
            raise OSError(5, "died")

        traffic._sysctls.turn_on = die  # type: ignore[method-assign]
        with contextlib.suppress(Exception):
            await traffic.start()
        assert "trtclient" in listed("set", "inet", TABLE, "fenced")
        assert forwarding("trtclient") == "0"
        again = host.traffic()
        await again.start()
        assert forwarding("trtclient") == "1"
        assert "trtclient" in listed("set", "inet", TABLE, "fenced")


async def test_a_table_of_an_earlier_name_is_moved_with_what_is_in_force(
    host: NftablesWorld,
) -> None:
    listen = free_listen()
    wanted = order(4, (listen, host.endpoint("blue")))
    old = NftablesTraffic("trtold0", SUBNET, (), state_file=host.state_file, table=f"{TABLE}_old0")
    await old.start()
    await old.apply(wanted)
    async with watching(host) as watched:
        assert f"{TABLE}_old0" not in listed("tables")
        assert await watched.traffic.observe() == {wanted.deployment: wanted}
        assert await ask(listen) == "blue"
        nft(f"add table inet {TABLE}_old0")  # a saved ruleset comes back
        await until(lambda: watched.news.repairs["data_plane"])
        assert f"{TABLE}_old0" not in listed("tables")
        assert "of an earlier configuration was there again" in watched.events()[0][2]
        ip("link add name old0 type bridge")  # another agent takes over the name
        nft(f"add table inet {TABLE}_old0")
        await asyncio.sleep(0.5)
        assert f"{TABLE}_old0" in listed("tables")


async def test_a_reset_under_way_survives_a_flush(host: NftablesWorld, watched: Watched) -> None:
    listen, endpoint = free_listen(), host.endpoint("blue")
    await watched.traffic.apply(order(1, (listen, endpoint)))
    with socket.create_connection((listen.address, listen.port)) as held:
        held.sendall(b"who\n")
        assert held.recv(100).startswith(b"blue")
        resetting = asyncio.create_task(watched.traffic.reset(endpoint))
        await until(
            lambda: resetting.done() or "10.99" in listed("set", "inet", TABLE, "resetting")
        )
        nft("flush ruleset")
        assert await resetting == 1
        await until(lambda: watched.news.repairs["data_plane"])
    assert "elements" not in listed("set", "inet", TABLE, "resetting")


async def test_guests_without_any_route_have_their_table_back_too(watched: Watched) -> None:
    """Whoever boots needs the world before anything is routed to it."""
    whole = tables()
    nft("flush ruleset")
    await until(lambda: watched.news.repairs["data_plane"] and tables() == whole)
    ((deployment, to, _),) = watched.events()
    assert (deployment, to) == (None, "repaired")


async def test_what_cannot_be_mended_is_a_problem_and_tried_again(
    host: NftablesWorld, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft_itself = shutil.which("nft")
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", "/nowhere")
    subprocess.run([nft_itself, "flush", "ruleset"], check=True)
    await until(lambda: watched.news.problems)
    (problem,) = watched.news.problems.values()
    assert problem.code == "traffic_unavailable"
    monkeypatch.setenv("PATH", path)
    await until(lambda: not watched.news.problems)
    assert TABLE in listed("tables")
