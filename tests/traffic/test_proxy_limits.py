"""What one deployment and one source may have of the data planes that carry connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.config_limits import LimitsConfig
from agent.model.resources import Listen
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.haproxy_limits import refused_in
from agent.traffic.proxy.messages import ProxyReply
from agent.traffic.proxy.process import _raise_file_limit
from agent.traffic.userspace import UserspaceTraffic
from tests.traffic.clients import Streams, ask, connected, who
from tests.traffic.test_haproxy_traffic import client_hello
from tests.traffic.worlds import (
    HaproxyWorld,
    UserspaceWorld,
    free_listen,
    haproxy_world,
    order,
    userspace_world,
)

Made = UserspaceTraffic | HaproxyTraffic
Make = Callable[..., Made]


@pytest.fixture(params=["userspace", "haproxy"])
def plane(
    request: pytest.FixtureRequest, short_dir: Path
) -> Iterator[UserspaceWorld | HaproxyWorld]:
    worlds = {"userspace": userspace_world, "haproxy": haproxy_world}
    with worlds[request.param](short_dir) as made:
        yield made


@pytest.fixture
async def make(plane: UserspaceWorld | HaproxyWorld) -> AsyncIterator[Make]:
    """A data plane as a new agent of these limits makes it."""
    made: list[Made] = []

    def with_limits(**limits: int) -> Made:
        at, config = plane.directory, LimitsConfig(**limits)
        if isinstance(plane, HaproxyWorld):
            made.append(HaproxyTraffic(plane.run_dir, plane.state_file, limits=config))
        else:
            files = (plane.socket, at / "routes.json", at / "traffic.log")
            made.append(UserspaceTraffic(*files, limits=config))
        return made[-1]

    yield with_limits
    for one in made:
        await one.close()
    await plane.clean()


async def serving(plane: UserspaceWorld | HaproxyWorld, traffic: Made) -> tuple[Listen, Listen]:
    """Blue behind the first listener, green behind the second."""
    first, second = free_listen(), free_listen()
    await traffic.start()
    await traffic.apply(order(1, (first, plane.endpoint("blue")), deployment="one"))
    await traffic.apply(order(1, (second, plane.endpoint("green")), deployment="two"))
    return first, second


async def ended(streams: Streams) -> bool:
    """Whether it was turned away: nothing but an end comes of it."""
    reader, writer = streams
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(5):
            writer.write(b"who\n")
            return await reader.read(1) == b""
    return True


async def refused_at(listen: Listen, *, source: str = "127.0.0.1") -> bool:
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(
            listen.address, listen.port, local_addr=(source, 0)
        )
        try:
            return await ended((reader, writer))
        finally:
            writer.close()
    return True


async def test_one_source_has_a_share_and_what_ends_gives_its_place_back(
    plane: UserspaceWorld | HaproxyWorld, make: Make
) -> None:
    traffic = make(source_connections=3, deployment_connections=100)
    first, second = await serving(plane, traffic)
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(first)) for _ in range(3)]
        assert [await who(one) for one in held] == ["blue"] * 3
        for _ in range(2):
            assert await refused_at(first)
        assert (await traffic.refused()).counts == {"one": {"source_connections": 2}}
        assert await ask(second) == "green"
        async with _from("127.0.0.5", first) as other:
            assert await who(other) == "blue"
        assert [await who(one) for one in held] == ["blue"] * 3
    async with asyncio.timeout(5):
        while await traffic.connections(plane.endpoint("blue")):
            await asyncio.sleep(0.01)
    assert await ask(first) == "blue"


@contextlib.asynccontextmanager
async def _from(source: str, listen: Listen) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(
        listen.address, listen.port, local_addr=(source, 0)
    )
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_a_deployment_has_a_share_whoever_connects(
    plane: UserspaceWorld | HaproxyWorld, make: Make
) -> None:
    traffic = make(source_connections=2, deployment_connections=4)
    first, second = await serving(plane, traffic)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(4):
            one = await stack.enter_async_context(_from(f"127.0.0.{10 + number}", first))
            assert await who(one) == "blue"
        assert await refused_at(first, source="127.0.0.20")
        assert (await traffic.refused()).counts == {"one": {"deployment_connections": 1}}
        assert await ask(second) == "green"


async def test_a_new_agent_brings_its_limits_and_keeps_the_connections(
    plane: UserspaceWorld | HaproxyWorld, make: Make
) -> None:
    before = make()
    first, _ = await serving(plane, before)
    async with connected(first) as held:
        assert await who(held) == "blue"
        await before.close()
        # HAProxy's is another process then, which begins to count anew.
        again = make(source_connections=2 if isinstance(plane, HaproxyWorld) else 3)
        await again.start()
        async with connected(first) as one, connected(first) as two:
            assert [await who(each) for each in (one, two)] == ["blue", "blue"]
            assert await refused_at(first)
        assert await who(held) == "blue"


async def test_silence_ends_a_connection_and_a_word_now_and_then_does_not(
    plane: UserspaceWorld | HaproxyWorld, make: Make
) -> None:
    traffic = make(idle_s=2)
    first, _ = await serving(plane, traffic)
    async with connected(first) as idle, connected(first) as stream:
        assert [await who(one) for one in (idle, stream)] == ["blue", "blue"]
        for _ in range(5):
            await asyncio.sleep(0.8)
            assert await who(stream) == "blue"
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(1):
                assert await idle[0].read() == b""


async def test_a_source_that_says_nothing_has_its_share_of_a_listener_that_is_shared(
    short_dir: Path,
) -> None:
    """Whose it is shows only with its first bytes."""
    with haproxy_world(short_dir) as world:
        limits = LimitsConfig(source_connections=3, deployment_connections=2)
        traffic = HaproxyTraffic(world.run_dir, world.state_file, limits=limits)
        await traffic.start()
        listen = free_listen()
        for name, guest in (("one", "blue"), ("two", "green")):
            wanted = order(
                1, (listen, world.endpoint(guest)), deployment=name, domain=f"{name}.example"
            )
            await traffic.apply(wanted)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection((listen.address, listen.port)))
            assert await refused_at(listen)
            async with contextlib.AsyncExitStack() as others:
                for number in range(2):
                    one = await others.enter_async_context(_from(f"127.0.0.{7 + number}", listen))
                    one[1].write(client_hello("one.example") + b"\nwho\n")
                    assert await one[0].readline()
                third = await others.enter_async_context(_from("127.0.0.9", listen))
                third[1].write(client_hello("one.example"))
                assert await ended(third)
                other = await others.enter_async_context(_from("127.0.0.9", listen))
                other[1].write(client_hello("two.example") + b"\nwho\n")
                assert await other[0].readline()
        assert (await traffic.refused()).counts == {"one": {"deployment_connections": 1}}
        await traffic.close()
        await world.clean()


async def test_a_proxy_of_an_earlier_version_is_let_run_and_told_of(short_dir: Path) -> None:
    """It answers as protocol 1 did: to what it does not know, with an error."""
    socket_path = short_dir / "traffic.sock"

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            known = b'"version"' in line or b'"observe"' in line
            error = None if known else "the traffic proxy does not understand"
            answer = ProxyReply(protocol=1 if b'"version"' in line else None, pid=77, error=error)
            writer.write(msgspec.json.encode(answer) + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(converse, socket_path)
    traffic = UserspaceTraffic(socket_path, short_dir / "routes.json", short_dir / "log")
    await traffic.start()
    assert await traffic.observe() == {}
    told = await traffic.refused()
    assert told.counts == {}
    assert "process 77" in str(told.unlimited)
    await traffic.close()
    server.close()


def test_a_table_of_haproxys_is_read() -> None:
    listing = (
        "# table: tenants, type: string, size:10240, used:2\n"
        "0x55d5: key=one use=1 exp=0 shard=0 gpc0=3 gpc1=0 conn_cur=2\n"
        "0x55d6: key=two use=0 exp=0 shard=0 gpc0=0 gpc1=0 conn_cur=0\n"
    )
    assert refused_in(listing) == {"one": {"source_connections": 3}}


def test_a_proxy_knows_how_many_files_it_may_have() -> None:
    assert 100 < _raise_file_limit() <= 1 << 18
