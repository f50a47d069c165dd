"""What every data plane promises, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import msgspec
import pytest

from agent.model.enclave import Endpoint
from agent.model.resources import Listen
from agent.traffic.port import Binding, RouteOrder, StaleGenerationError, Traffic, TrafficError
from agent.traffic.proxy.relay import QUIET_S
from tests.fakes.netns import add_ipv6, ip, own_host
from tests.traffic.clients import ask, connected, say, who
from tests.traffic.worlds import WORLDS, World, free_listen, order

MIB = 1 << 20


async def refused(listen: Listen) -> bool:
    """Refused at once, as a port that nobody serves: not reset later, not left without answer."""
    async with asyncio.timeout(2):
        try:
            _, writer = await asyncio.open_connection(listen.address, listen.port)
        except ConnectionRefusedError:
            return True
    writer.close()
    return False


async def test_a_connection_reaches_the_endpoint(world: World, traffic: Traffic) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, world.endpoint("blue"))))
    assert await ask(listen) == "blue"


async def test_what_was_applied_is_observed(world: World, traffic: Traffic) -> None:
    first, second = free_listen(), free_listen("0.0.0.0")
    blue, green = world.endpoint("blue"), world.endpoint("green")
    mine = order(7, (second, blue), (first, None), domain="a." + "b" * 60 + ".example.org")
    theirs = order(2**40, (free_listen(), green), deployment="other-" + "x" * 57)
    await traffic.apply(mine)
    await traffic.apply(theirs)
    assert await traffic.observe() == {mine.deployment: mine, theirs.deployment: theirs}


async def test_a_new_instance_observes_and_serves_the_same(world: World, traffic: Traffic) -> None:
    listen = free_listen()
    wanted = order(3, (listen, world.endpoint("blue")), (free_listen(), None))
    await traffic.apply(wanted)
    await traffic.close()
    again = world.traffic()
    await again.start()
    assert await again.observe() == {wanted.deployment: wanted}
    assert await ask(listen) == "blue"
    with pytest.raises(StaleGenerationError):
        await again.apply(order(2, (listen, world.endpoint("green"))))
    await again.close()


async def test_a_switch_under_load_fails_no_connection(world: World, traffic: Traffic) -> None:
    listen = free_listen()
    guests = ["blue", "green"]
    await traffic.apply(order(0, (listen, world.endpoint("blue"))))
    done = asyncio.Event()
    answers: list[str] = []

    async def load() -> None:
        while not done.is_set():
            answers.append(await ask(listen))

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(load()) for _ in range(8)]
        for generation in range(1, 21):
            guest = guests[generation % 2]
            await traffic.apply(order(generation, (listen, world.endpoint(guest))))
            assert await ask(listen) == guest
            seen = len(answers)
            while len(answers) < seen + 8:
                await asyncio.sleep(0)
        done.set()
    assert all(client.exception() is None for client in clients)
    assert set(answers) == set(guests)


async def test_established_connections_stay_with_their_endpoint(
    world: World, traffic: Traffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, world.endpoint("blue"))))
    async with connected(listen) as old:
        assert await who(old) == "blue"
        await traffic.apply(order(2, (listen, world.endpoint("green"))))
        assert await ask(listen) == "green"
        assert await who(old) == "blue"
        await traffic.apply(order(3, (listen, None)))
        assert await who(old) == "blue"


async def test_a_listener_without_endpoints_refuses_at_once_and_serves_again(
    world: World, traffic: Traffic
) -> None:
    listen, wildcard = free_listen(), free_listen("0.0.0.0")
    await traffic.apply(order(1, (listen, None), (wildcard, None)))
    assert await refused(listen)
    assert await refused(wildcard)
    blue = world.endpoint("blue")
    await traffic.apply(order(2, (listen, blue), (wildcard, blue)))
    assert [await ask(listen), await ask(wildcard)] == ["blue", "blue"]
    await traffic.apply(order(3, (listen, None), (wildcard, None)))
    assert await refused(listen)
    assert await refused(wildcard)


async def test_a_refusing_listener_leaves_outgoing_connections_alone(
    world: World, traffic: Traffic
) -> None:
    """A connection of the host itself may use the very port number at its own end."""
    listen = free_listen("0.0.0.0")
    blue = world.endpoint("blue")
    await traffic.apply(order(1, (listen, None)))
    with socket.socket() as outgoing:
        outgoing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # a data plane that holds the port forestalls this
            outgoing.bind(("0.0.0.0", listen.port))
        outgoing.connect((blue.address, blue.port))
        outgoing.setblocking(False)
        streams = await asyncio.open_connection(sock=outgoing.dup())
        assert await who(streams) == "blue"
        streams[1].close()


async def test_an_older_generation_is_refused_and_changes_nothing(
    world: World, traffic: Traffic
) -> None:
    listen, other = free_listen(), free_listen()
    wanted = order(5, (listen, world.endpoint("blue")))
    await traffic.apply(wanted)
    with pytest.raises(StaleGenerationError):
        await traffic.apply(order(4, (listen, world.endpoint("green")), (other, None)))
    assert await traffic.observe() == {wanted.deployment: wanted}
    assert await ask(listen) == "blue"


async def test_the_same_order_again_changes_nothing(world: World, traffic: Traffic) -> None:
    listen = free_listen()
    wanted = order(5, (listen, world.endpoint("blue")))
    await traffic.apply(wanted)
    async with connected(listen) as held:
        await traffic.apply(wanted)
        assert await who(held) == "blue"
    assert await traffic.observe() == {wanted.deployment: wanted}


async def test_a_generation_may_move_a_deployment_to_other_listeners(
    world: World, traffic: Traffic
) -> None:
    left, kept, new = free_listen(), free_listen(), free_listen()
    blue = world.endpoint("blue")
    await traffic.apply(order(1, (left, blue), (kept, blue)))
    async with connected(left) as held:
        assert await who(held) == "blue"
        await traffic.apply(order(2, (new, blue), (kept, blue)))
        assert await who(held) == "blue"
    assert [await ask(kept), await ask(new)] == ["blue", "blue"]
    assert await refused(left)


async def test_listeners_of_a_deployment_have_endpoints_of_their_own(
    world: World, traffic: Traffic
) -> None:
    first, second = free_listen(), free_listen()
    await traffic.apply(order(1, (first, world.endpoint("blue")), (second, None)))
    await traffic.apply(
        order(2, (first, world.endpoint("green", 0)), (second, world.endpoint("green", 1)))
    )
    assert [await ask(first), await ask(second)] == ["green", "green"]


async def test_deployments_do_not_touch_each_other(world: World, traffic: Traffic) -> None:
    mine, theirs = free_listen(), free_listen()
    other = order(9, (theirs, world.endpoint("green")), deployment="other")
    await traffic.apply(order(1, (mine, world.endpoint("blue"))))
    await traffic.apply(other)
    await traffic.apply(order(2, (mine, None)))
    assert await ask(theirs) == "green"
    await traffic.remove(order(0).deployment)
    assert await traffic.observe() == {other.deployment: other}
    assert await ask(theirs) == "green"


async def test_a_removed_deployment_is_forgotten(world: World, traffic: Traffic) -> None:
    listen = free_listen()
    await traffic.apply(order(5, (listen, world.endpoint("blue"))))
    await traffic.remove(order(0).deployment)
    await traffic.remove(order(0).deployment)
    assert await traffic.observe() == {}
    assert await refused(listen)
    await traffic.apply(order(1, (listen, world.endpoint("green"))))
    assert await ask(listen) == "green"


async def test_a_listener_of_another_deployment_is_taken(world: World, traffic: Traffic) -> None:
    listen, free = free_listen(), free_listen()
    theirs = order(1, (listen, None), deployment="other")
    await traffic.apply(theirs)
    with pytest.raises(TrafficError, match="other"):
        await traffic.apply(order(1, (free, world.endpoint("blue")), (listen, None)))
    assert await traffic.observe() == {theirs.deployment: theirs}
    assert await refused(free)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_a_listener_of_another_process_is_taken(
    world: World, traffic: Traffic, address: str
) -> None:
    free = free_listen()
    mine = order(1, (free, world.endpoint("blue")))
    await traffic.apply(mine)
    with socket.create_server((address, 0)) as theirs:
        listen = Listen(address="127.0.0.1", port=theirs.getsockname()[1])
        with pytest.raises(TrafficError, match=str(listen)):
            await traffic.apply(order(2, (free, None), (listen, world.endpoint("blue"))))
        assert await traffic.observe() == {mine.deployment: mine}
        assert await ask(free) == "blue"
    again = order(2, (free, None), (listen, world.endpoint("blue")))
    await traffic.apply(again)
    assert await ask(listen) == "blue"


async def test_connections_are_counted_by_endpoint(world: World, traffic: Traffic) -> None:
    listen = free_listen()
    blue, green = world.endpoint("blue"), world.endpoint("green")
    await traffic.apply(order(1, (listen, blue)))
    assert await traffic.connections(blue) == 0
    async with connected(listen) as one, connected(listen) as two:
        assert [await who(one), await who(two)] == ["blue", "blue"]
        assert await traffic.connections(blue) == 2
        await traffic.apply(order(2, (listen, green)))
        async with connected(listen) as three:
            assert await who(three) == "green"
            assert await traffic.connections(blue) == 2
            assert await traffic.connections(green) == 1
            assert await traffic.connections(world.endpoint("blue", 1)) == 0


async def test_connections_past_the_data_plane_are_not_counted(
    world: World, traffic: Traffic
) -> None:
    """Probes go to the endpoint directly."""
    blue = world.endpoint("blue")
    reader, writer = await asyncio.open_connection(blue.address, blue.port)
    assert await who((reader, writer)) == "blue"
    assert await traffic.connections(blue) == 0
    assert await traffic.reset(blue) == 0
    assert await who((reader, writer)) == "blue"
    writer.close()


async def test_a_half_closed_connection_still_counts(world: World, traffic: Traffic) -> None:
    """Its client has said all and waits for the rest of the answer."""
    listen, blue = free_listen(), world.endpoint("blue")
    await traffic.apply(order(1, (listen, blue)))
    async with connected(listen) as (reader, writer):
        writer.write(b"bulk 30000000\n")
        assert await reader.readexactly(100000)
        writer.write_eof()
        assert await traffic.connections(blue) == 1
        await reader.read()


async def test_reset_reaches_idle_clients_at_once(world: World, traffic: Traffic) -> None:
    listen, blue = free_listen(), world.endpoint("blue")
    await traffic.apply(order(1, (listen, blue)))
    async with contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(listen)) for _ in range(5)]
        for one in idle:
            assert await who(one) == "blue"
            one[1].write(b"and")  # from here on it waits for an answer
        await traffic.apply(order(2, (listen, world.endpoint("green"))))
        other = await stack.enter_async_context(connected(listen))
        assert await who(other) == "green"
        assert await traffic.reset(blue) == 5
        async with asyncio.timeout(1):
            for reader, _ in idle:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        assert await traffic.connections(blue) == 0
        assert await who(other) == "green"
    assert await traffic.reset(blue) == 0


async def test_only_what_is_under_way_is_lost(world: World, traffic: Traffic) -> None:
    """Where the data plane can tell; and what the guest has closed nobody loses."""
    listen, blue = free_listen(), world.endpoint("blue")
    await traffic.apply(order(1, (listen, blue)))
    async with connected(listen) as idle, connected(listen) as left, connected(listen) as waits:
        for one in (idle, left, waits):
            assert await who(one) == "blue"
        assert await say(left, "bye") == "bye"
        assert await left[0].read() == b""
        await asyncio.sleep(0.05)  # within one tick the kernel does not tell who spoke last
        waits[1].write(b"half a request")
        await asyncio.sleep(QUIET_S + 0.2)
        blind = traffic.kind == "nftables"
        assert await traffic.reset(blue) == (2 if blind else 1)
        async with asyncio.timeout(30):
            for one in (idle, waits) if blind else (waits,):
                with pytest.raises(ConnectionResetError):
                    await one[0].read()
            if not blind:
                assert await idle[0].read() == b""
            while await traffic.connections(blue):
                await asyncio.sleep(0.01)


async def test_reset_reaches_clients_in_the_middle_of_a_stream(
    world: World, traffic: Traffic
) -> None:
    listen, blue = free_listen(), world.endpoint("blue")
    await traffic.apply(order(1, (listen, blue)))
    async with connected(listen) as (reader, writer):
        writer.write(b"bulk 1000000000\n")
        await reader.readexactly(MIB)
        assert await traffic.reset(blue) == 1
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_a_reset_endpoint_can_be_used_again(world: World, traffic: Traffic) -> None:
    listen, blue = free_listen(), world.endpoint("blue")
    await traffic.apply(order(1, (listen, blue)))
    async with connected(listen) as held:
        assert await who(held) == "blue"
        held[1].write(b"and")
        assert await traffic.reset(blue) == 1
    async with connected(listen) as held:
        assert await who(held) == "blue"
        assert await traffic.connections(blue) == 1


async def test_a_client_that_closed_its_half_gets_the_whole_answer(
    world: World, traffic: Traffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, world.endpoint("blue"))))
    async with connected(listen) as (reader, writer):
        writer.write(b"count\n" + b"x" * MIB)
        writer.write_eof()
        assert await reader.read() == b"%d\n" % MIB


async def test_fifty_megabytes_arrive_at_a_slow_reader(world: World, traffic: Traffic) -> None:
    listen, size = free_listen(), 50 * MIB
    await traffic.apply(order(1, (listen, world.endpoint("blue"))))
    async with connected(listen) as (reader, writer):
        writer.write(b"bulk %d\n" % size)
        left = size
        while left:
            left -= len(await reader.readexactly(min(left, MIB)))
            await asyncio.sleep(0.005)
        assert await say((reader, writer), "end") == "end"


async def test_fifty_megabytes_are_taken_from_a_client(world: World, traffic: Traffic) -> None:
    listen, size = free_listen(), 50 * MIB
    await traffic.apply(order(1, (listen, world.endpoint("blue"))))
    async with connected(listen) as (reader, writer):
        writer.write(b"count\n")
        for _ in range(50):
            writer.write(b"x" * MIB)
            await writer.drain()
        writer.write_eof()
        assert await reader.read() == b"%d\n" % size


async def test_an_endpoint_that_is_down_does_not_hang_its_clients(
    world: World, traffic: Traffic
) -> None:
    listen, blue = free_listen(), world.endpoint("blue")
    nobody = Endpoint(address=blue.address, port=9)
    await traffic.apply(order(1, (listen, nobody)))
    async with asyncio.timeout(2):
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            await ask(listen)


async def test_a_death_between_any_two_steps_leaves_the_old_order_or_the_new(
    world: World, traffic: Traffic
) -> None:
    listen, more = free_listen(), free_listen()
    blue, green = world.endpoint("blue"), world.endpoint("green")
    old = order(1, (listen, blue))
    new = order(2, (listen, green), (more, green))
    await traffic.apply(old)
    await traffic.close()
    ended = []
    for _ in world.apply_and_die(new):
        successor = world.traffic()
        await successor.start()
        found = await only_order(successor)
        assert found in (old, new)
        assert await ask(listen) == ("blue" if found == old else "green")
        ended.append(found)
        await successor.apply(new)
        assert await only_order(successor) == new
        await successor.remove(new.deployment)
        await successor.apply(old)
        await successor.close()
    assert ended[0] == old
    assert ended[-1] == new


async def only_order(traffic: Traffic) -> RouteOrder:
    (found,) = (await traffic.observe()).values()
    return found


async def test_an_order_that_names_a_listener_twice_is_refused(
    world: World, traffic: Traffic
) -> None:
    listen, blue = free_listen(), world.endpoint("blue")
    with pytest.raises(TrafficError, match=str(listen)):
        await traffic.apply(order(1, (listen, blue), (listen, None)))
    assert await traffic.observe() == {}


async def test_several_endpoints_share_the_new_connections(world: World, traffic: Traffic) -> None:
    listen, wildcard = free_listen(), free_listen("0.0.0.0")
    both = (world.endpoint("blue"), world.endpoint("green"))
    shared = [Binding(listen=target, endpoints=both) for target in (listen, wildcard)]
    wanted = msgspec.structs.replace(order(2), bindings=tuple(shared))
    await traffic.apply(wanted)
    assert await traffic.observe() == {wanted.deployment: wanted}
    for target in (listen, wildcard):
        assert {await ask(target) for _ in range(70)} == {"blue", "green"}
    back = order(3, (listen, both[1]), (wildcard, None))
    await traffic.apply(back)
    assert {await ask(listen) for _ in range(4)} == {"green"}
    assert await refused(wildcard)


@pytest.mark.root
@pytest.mark.parametrize("name", ["userspace", "haproxy"])  # nftables: as clients elsewhere see it
async def test_an_address_that_comes_and_goes_is_served_while_it_is_here(
    name: str, short_dir: Path
) -> None:
    floating = [Listen(address=one, port=8443) for one in ("198.51.100.77", "fd00:99::7")]
    with own_host(), WORLDS[name](short_dir) as world:
        traffic = world.traffic()
        await traffic.start()
        await traffic.apply(order(1, *((one, world.endpoint("blue")) for one in floating)))
        for _ in range(2):
            for one in floating:
                with pytest.raises(OSError, match=r"Connect call failed|unreachable"):
                    await ask(one)
                if one.is_ipv6:
                    add_ipv6(f"{one.address}/128", "lo")
                else:
                    ip(f"addr add {one.address} dev lo")
                assert await ask(one) == "blue"
                ip(f"addr del {one.address}/{128 if one.is_ipv6 else 32} dev lo")
        await traffic.close()
        await world.clean()
