"""What the HAProxy data plane alone promises: its processes, names on a shared listener."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from agent.host.commands import CompletedCommand
from agent.model.enclave import Endpoint
from agent.model.resources import Listen
from agent.traffic import haproxy_config
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.haproxy_host import probe_haproxy
from agent.traffic.haproxy_process import processes_in
from agent.traffic.haproxy_runtime import ask as command
from agent.traffic.port import Binding, RouteOrder, TrafficError
from tests.traffic.applying_agent import agent_that_applied
from tests.traffic.clients import ask, asks, connected, say, who
from tests.traffic.worlds import HaproxyWorld, free_listen, haproxy_world, order


@pytest.fixture
def guests(short_dir: Path) -> Iterator[HaproxyWorld]:
    with haproxy_world(short_dir) as made:
        yield made


@pytest.fixture
async def traffic(guests: HaproxyWorld) -> AsyncIterator[HaproxyTraffic]:
    made = guests.traffic()
    await made.start()
    yield made
    await made.close()
    await guests.clean()


def control(world: HaproxyWorld) -> Path:
    """The newest process's socket."""
    return world.run_dir / str(processes_in(world.run_dir)[0]) / "s"


async def process_of(world: HaproxyWorld) -> psutil.Process:
    (answer,) = await command(control(world), ["show info"])
    (line,) = (line for line in answer.splitlines() if line.startswith("Pid: "))
    return psutil.Process(int(line.removeprefix("Pid: ")))


def _runs(process: psutil.Process) -> bool:
    """Not if it waits for init to take note of its end."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def served(listen: Listen) -> str:
    """The first answer, however long that takes."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ConnectionError):
                return await ask(listen)
            await asyncio.sleep(0.01)


def client_hello(name: str | None) -> bytes:
    """The first bytes of a TLS client that wants this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def ask_by_name(listen: Listen, name: str | None) -> str:
    """The guest that is sent a client's first bytes; it echoes what it does not understand."""
    async with connected(listen) as (reader, writer):
        writer.write(client_hello(name) + b"\nwho\n")
        while line := await reader.readline():
            if line.startswith((b"blue ", b"green ")):
                return line.split()[0].decode()
        raise ConnectionResetError("closed")


async def test_a_switch_is_made_by_the_process_that_runs(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    before = await process_of(guests)
    for generation in range(2, 12):
        await traffic.apply(order(generation, (listen, guests.endpoint("green"))))
        await traffic.apply(order(generation, (listen, guests.endpoint("blue"))))
    await traffic.apply(order(20, (listen, None)))
    assert (await process_of(guests)).pid == before.pid
    members = control(guests).with_name("members.map")
    (listing,) = await command(control(guests), [f"show map {members}"])
    assert len(listing.splitlines()) <= 3  # the edition in force and the one before


async def test_other_listeners_come_and_go_under_load_and_nobody_notices(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    done, answers = asyncio.Event(), 0

    async def load() -> None:
        nonlocal answers
        while not done.is_set():
            assert await ask(listen) == "blue"
            answers += 1

    async with asyncio.TaskGroup() as group, connected(listen) as held:
        assert await who(held) == "blue"
        for _ in range(6):
            group.create_task(load())
        for number in range(6):
            other = order(1, (free_listen(), guests.endpoint("green")), deployment=f"o{number}")
            await traffic.apply(other)
            if number % 2:
                await traffic.remove(other.deployment)
        assert await who(held) == "blue"
        done.set()
    assert answers > 50


async def test_a_process_that_only_finishes_is_counted_and_can_be_reset(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen, blue = free_listen(), guests.endpoint("blue")
    wanted = order(1, (listen, blue))
    await traffic.apply(wanted)
    first = await process_of(guests)
    async with connected(listen) as old:
        assert await who(old) == "blue"
        other = order(1, (free_listen(), blue), deployment="other")
        await traffic.apply(other)
        assert (await process_of(guests)).pid != first.pid
        async with connected(listen) as new:
            assert await who(new) == "blue"
            for _, writer in (old, new):
                writer.write(b"and")  # a request under way
            await traffic.close()
            again = guests.traffic()
            await again.start()
            assert await again.observe() == {"hello": wanted, "other": other}
            assert await again.connections(blue) == 2
            assert await again.reset(blue) == 2
            for reader, _ in (old, new):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        await again.observe()
        assert not _runs(first)
        assert len(processes_in(guests.run_dir)) == 1
        await again.close()


APPLYING = "HaproxyTraffic(d / 'haproxy', d / 'haproxy.json')"


async def test_a_kill_of_the_agent_under_load_fails_nothing(guests: HaproxyWorld) -> None:
    listen = free_listen()
    wanted = order(1, (listen, guests.endpoint("blue")))
    with agent_that_applied(wanted, guests.directory, APPLYING) as agent:
        async with connected(listen) as held, asyncio.TaskGroup() as group:
            assert await who(held) == "blue"
            clients = [group.create_task(asks(listen, 50, "blue")) for _ in range(4)]
            agent.kill()
            assert sum([await client for client in clients]) == 200
            assert await who(held) == "blue"
    successor = guests.traffic()
    before = await process_of(guests)
    await successor.start()
    assert await successor.observe() == {wanted.deployment: wanted}
    assert (await process_of(guests)).pid == before.pid
    await successor.close()
    await guests.clean()


async def test_a_killed_process_comes_back_by_itself_with_its_routes(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen, refusing = free_listen(), free_listen()
    wanted = order(4, (listen, guests.endpoint("blue")), (refusing, None), domain="a.example")
    await traffic.apply(wanted)
    before = await process_of(guests)
    async with connected(listen) as held:
        assert await who(held) == "blue"
        before.kill()
        with pytest.raises(ConnectionResetError):
            await who(held)
    assert await served(listen) == "blue"
    assert await traffic.observe() == {wanted.deployment: wanted}
    assert (await process_of(guests)).pid != before.pid


async def test_a_kill_does_not_end_what_an_older_process_finishes(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    async with connected(listen) as held:
        assert await who(held) == "blue"
        later = order(2, (listen, guests.endpoint("green")), (free_listen(), None))
        await traffic.apply(later)
        (await process_of(guests)).kill()
        assert await served(listen) == "green"
        assert await traffic.observe() == {later.deployment: later}
        assert await who(held) == "blue"
        assert await traffic.connections(guests.endpoint("blue")) == 1


async def test_a_process_that_died_leaves_a_lost_listener_out(guests: HaproxyWorld) -> None:
    listen, other = free_listen(), free_listen()
    traffic = guests.traffic()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    theirs = order(1, (other, guests.endpoint("green")), deployment="other")
    await traffic.apply(theirs)
    process = await process_of(guests)
    process.kill()
    while _runs(process):
        await asyncio.sleep(0.01)
    with socket.create_server((listen.address, listen.port)):
        assert await traffic.observe() == {theirs.deployment: theirs}
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    assert await ask(listen) == "blue"
    await guests.clean()


async def test_a_process_is_in_a_session_of_its_own_without_rights_and_its_socket_private(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    process = await process_of(guests)
    assert os.getsid(process.pid) == process.pid
    assert process.uids().real == process.uids().effective != 0
    assert stat.S_IMODE(control(guests).stat().st_mode) == 0o600
    assert stat.S_IMODE(guests.run_dir.stat().st_mode) == 0o700
    assert process.num_threads() == 1


async def test_shutdown_ends_every_process_and_frees_its_ports(guests: HaproxyWorld) -> None:
    listen = free_listen()
    traffic = guests.traffic()
    await traffic.start()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    async with connected(listen) as held:
        assert await who(held) == "blue"
        older = await process_of(guests)
        await traffic.apply(order(2, (listen, guests.endpoint("blue")), (free_listen(), None)))
        newer = await process_of(guests)
        await traffic.shutdown()
        assert not _runs(older)
        assert not _runs(newer)
    socket.create_server((listen.address, listen.port)).close()
    assert list(guests.directory.iterdir()) == []
    await traffic.shutdown()


async def test_ipv6_listeners_are_served_beside_ipv4_ones(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    loopback, any6 = free_listen("::1"), free_listen("::")
    any4 = Listen(address="0.0.0.0", port=any6.port)
    blue, green = guests.endpoint("blue"), guests.endpoint("green")
    assert traffic.refusal(any6) is None
    wanted = order(1, (loopback, blue), (any6, blue), (any4, green))
    await traffic.apply(wanted)
    assert await ask(loopback) == "blue"
    assert await ask(Listen(address="::1", port=any6.port)) == "blue"
    assert await ask(Listen(address="127.0.0.1", port=any6.port)) == "green"
    async with connected(loopback) as (reader, writer):
        assert await who((reader, writer)) == "blue"
        writer.write(b"and")
        assert await traffic.reset(blue) == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
    await traffic.apply(order(2, (loopback, None), (any6, None), (any4, green)))
    with pytest.raises(ConnectionRefusedError):
        await ask(loopback)
    assert await ask(Listen(address="127.0.0.1", port=any6.port)) == "green"


@pytest.mark.parametrize(
    "damage",
    [
        "del map {routes} hello",
        "set map {routes} hello 1!4!!nonsense",
        "set map {routes} hello 77!4!!127.0.0.1:1=",
        "add map {routes} other 1!4!!127.0.0.1:1=",
        "clear map {members}",
        "add map {members} 1/127.0.0.1-1/0 127.0.0.1:1",
        "disable frontend {frontend}",
        "shutdown frontend {frontend}",
        "disable server guests/{server}",
        "set server guests/{server} addr 127.0.0.1 port 1",
    ],
)
async def test_what_others_changed_is_not_in_force_or_mended_at_once(
    guests: HaproxyWorld, traffic: HaproxyTraffic, damage: str
) -> None:
    listen, other = free_listen(), free_listen()
    blue = guests.endpoint("blue")
    wanted = order(4, (listen, blue))
    theirs = order(1, (other, guests.endpoint("green")), deployment="theirs")
    await traffic.apply(theirs)
    await traffic.apply(wanted)
    words = {
        "routes": control(guests).with_name("routes.map"),
        "members": control(guests).with_name("members.map"),
        "frontend": f"{listen.address}-{listen.port}",
        "server": f"{blue.address}:{blue.port}",
    }
    await command(control(guests), [damage.format(**words)])
    in_force = await traffic.observe()
    for name, served_by, target in (("hello", "blue", listen), ("theirs", "green", other)):
        if name in in_force:
            assert await ask(target) == served_by
    await traffic.apply(theirs)
    await traffic.apply(wanted)
    assert await traffic.observe() == {wanted.deployment: wanted, theirs.deployment: theirs}
    assert [await ask(listen), await ask(other)] == ["blue", "green"]


async def test_a_name_decides_where_deployments_share_a_listener(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    blue, green = guests.endpoint("blue"), guests.endpoint("green")
    first = order(1, (listen, blue), domain="a.example.org")
    second = order(1, (listen, green), deployment="other", domain="b.example.org")
    await traffic.apply(first)
    assert await ask(listen) == "blue"  # to itself: whatever is said
    await traffic.apply(second)
    assert await traffic.observe() == {"hello": first, "other": second}
    assert await ask_by_name(listen, "a.example.org") == "blue"
    assert await ask_by_name(listen, "B.Example.ORG") == "green"
    for wrong in ("c.example.org", "a.example.org.evil", None):
        with pytest.raises(ConnectionError):
            await ask_by_name(listen, wrong)
    with pytest.raises(ConnectionError):
        await ask(listen)  # no TLS at all
    await traffic.remove(second.deployment)
    assert await ask(listen) == "blue"


async def test_a_switch_behind_a_name_leaves_the_others_alone(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    ends = [guests.endpoint("blue"), guests.endpoint("green")]
    await traffic.apply(order(1, (listen, ends[0]), domain="a.example.org"))
    theirs = order(1, (listen, ends[0]), deployment="other", domain="b.example.org")
    await traffic.apply(theirs)
    pid = (await process_of(guests)).pid
    done, answers = asyncio.Event(), set()

    async def load(name: str) -> None:
        while not done.is_set():
            answers.add((name, await ask_by_name(listen, name)))

    async with asyncio.TaskGroup() as group:
        for name in ("a.example.org", "b.example.org") * 2:
            group.create_task(load(name))
        for generation in range(2, 12):
            target = ends[(generation + 1) % 2]
            await traffic.apply(order(generation, (listen, target), domain="a.example.org"))
            assert (
                await ask_by_name(listen, "a.example.org")
                == ("blue", "green")[(generation + 1) % 2]
            )
        done.set()
    assert (await process_of(guests)).pid == pid
    assert {answer for name, answer in answers if name.startswith("b")} == {"blue"}


async def test_a_name_that_nobody_serves_is_closed_within_a_tenth_of_a_second(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    theirs = order(1, (listen, guests.endpoint("green")), deployment="o", domain="b.example.org")
    await traffic.apply(order(1, (listen, None), domain="a.example.org"))
    await traffic.apply(theirs)
    hello = client_hello("a.example.org")
    async with connected(listen) as (reader, writer):
        started = asyncio.get_running_loop().time()
        writer.write(hello)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert asyncio.get_running_loop().time() - started < 0.1
    assert await ask_by_name(listen, "b.example.org") == "green"
    nobody = msgspec.structs.replace(theirs, generation=2, bindings=(Binding(listen=listen),))
    await traffic.apply(nobody)
    with pytest.raises(ConnectionRefusedError):
        await ask(listen)


async def test_a_client_hello_in_pieces_is_waited_for(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    for deployment, domain, guest in (("a", "a.example", "blue"), ("b", "b.example", "green")):
        await traffic.apply(
            order(1, (listen, guests.endpoint(guest)), deployment=deployment, domain=domain)
        )
    hello = client_hello("b.example")
    async with connected(listen) as (reader, writer):
        for part in (hello[:3], hello[3:60], hello[60:]):
            writer.write(part)
            await asyncio.sleep(0.05)
        writer.write(b"\nwho\n")
        seen = b""
        while b"\ngreen " not in seen:
            seen += await reader.readline() or pytest.fail(f"closed after {seen!r}")


@pytest.mark.parametrize(
    ("domain", "address"),
    [(None, None), ("a.example", None), ("A.Example", None), ("b.example", "0.0.0.0")],
)
async def test_a_listener_is_shared_only_by_different_names_on_the_very_same_address(
    guests: HaproxyWorld, traffic: HaproxyTraffic, domain: str | None, address: str | None
) -> None:
    listen = free_listen()
    mine = order(1, (listen, guests.endpoint("blue")), domain="a.example")
    await traffic.apply(mine)
    target = Listen(address=address or listen.address, port=listen.port)
    with pytest.raises(TrafficError, match="taken by hello"):
        await traffic.apply(
            order(1, (target, guests.endpoint("green")), deployment="other", domain=domain)
        )
    assert await traffic.observe() == {mine.deployment: mine}
    assert await ask(listen) == "blue"


async def test_an_order_that_cannot_be_made_durable_changes_nothing(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen, more = free_listen(), free_listen()
    blue = guests.endpoint("blue")
    wanted = order(1, (listen, blue))
    await traffic.apply(wanted)
    kept = guests.directory / "kept.json"
    guests.state_file.rename(kept)
    guests.state_file.mkdir()  # nothing can be renamed over a directory
    for refused in (order(2, (listen, None)), order(2, (listen, None), (more, blue))):
        with pytest.raises(TrafficError, match=r"haproxy\.json|durable"):
            await traffic.apply(refused)
        assert await ask(listen) == "blue"
    guests.state_file.rmdir()
    kept.rename(guests.state_file)
    assert await traffic.observe() == {wanted.deployment: wanted}
    with pytest.raises(ConnectionRefusedError):
        await ask(more)


@pytest.mark.parametrize(
    "wrong",
    [
        {"domain": "a\n  bind :1"},
        {"domain": "a b"},
        {"domain": "a!b"},
        {"deployment": "a;b"},
        {"bindings": (Binding(listen=Listen(address="127.0.0.1 ssl", port=1)),)},
        {"bindings": (Binding(listen=Listen(address="127.0.0.1", port=0)),)},
        {
            "bindings": (
                Binding(
                    listen=Listen(address="127.0.0.1", port=1),
                    endpoints=(Endpoint(address="::1", port=1),),
                ),
            )
        },
        {
            "bindings": tuple(
                Binding(listen=Listen(address="127.0.0.1", port=port)) for port in range(1, 1000)
            )
        },
    ],
)
async def test_nothing_that_is_not_checked_gets_to_haproxy(
    guests: HaproxyWorld, traffic: HaproxyTraffic, wrong: dict[str, object]
) -> None:
    fields = {**msgspec.structs.asdict(order(1)), **wrong}
    with pytest.raises(TrafficError):
        await traffic.apply(RouteOrder(**fields))
    assert await traffic.observe() == {}


async def test_a_directory_that_no_configuration_can_hold_is_refused(short_dir: Path) -> None:
    for name in ("a b", "x" * 90, "a,b"):
        traffic = HaproxyTraffic(short_dir / name, short_dir / "haproxy.json")
        with pytest.raises(TrafficError, match="configuration"):
            await traffic.start()


async def test_a_listener_that_haproxy_cannot_have_is_named_and_nothing_changes(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen, foreign = free_listen(), Listen(address="ff02::1", port=4433)
    blue = guests.endpoint("blue")
    wanted = order(1, (listen, blue))
    await traffic.apply(wanted)
    before = await process_of(guests)
    with pytest.raises(TrafficError, match="ff02::1"):
        await traffic.apply(order(2, (listen, None), (foreign, blue)))
    assert await traffic.observe() == {wanted.deployment: wanted}
    assert (await process_of(guests)).pid == before.pid
    assert len(processes_in(guests.run_dir)) == 1
    assert await ask(listen) == "blue"


async def test_a_successor_takes_over_the_sockets_of_a_process_of_an_earlier_version(
    guests: HaproxyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That process bound its addresses plainly, and a socket can only be inherited as it is."""
    listen, other, blue = free_listen(), free_listen(), guests.endpoint("blue")
    earlier = guests.traffic()
    with monkeypatch.context() as patch:
        patch.setattr(haproxy_config, "_bind", lambda listen, _: f"bind {listen}")
        await earlier.start()
        await earlier.apply(order(1, (listen, blue)))
        await earlier.close()
    traffic = guests.traffic()
    await traffic.start()
    before = await process_of(guests)
    for generation in (2, 3):  # the second successor inherits from the first
        others = [(other, blue)] if generation == 2 else []
        await traffic.apply(order(generation, (listen, blue), *others))
        assert await ask(listen) == "blue"
    assert (await process_of(guests)).pid != before.pid
    await traffic.shutdown()


@pytest.mark.slow
async def test_a_connection_may_be_idle_for_longer_than_one_takes_to_be_made(
    guests: HaproxyWorld, traffic: HaproxyTraffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    async with connected(listen) as held:
        assert await who(held) == "blue"
        await asyncio.sleep(12)
        assert await say(held, "end") == "end"


async def test_the_probe_says_what_is_missing() -> None:
    async def old(argv: object, **_: object) -> CompletedCommand:
        return CompletedCommand(0, b"HAProxy version 2.4.9 2021/11/23", b"")

    assert await probe_haproxy() is None
    assert "older than 2.6" in str(await probe_haproxy(old))
