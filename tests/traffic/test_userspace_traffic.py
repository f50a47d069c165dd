"""What the userspace data plane alone promises: a process of its own, and bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from agent.model.enclave import Endpoint
from agent.model.resources import Listen
from agent.traffic.port import TrafficError
from agent.traffic.userspace import UserspaceTraffic
from tests.fakes.wheels import wheelhouse
from tests.traffic.applying_agent import agent_that_applied
from tests.traffic.clients import ask, asks, connected, say, who
from tests.traffic.worlds import UserspaceWorld, free_listen, order, userspace_world

MIB = 1 << 20


@pytest.fixture
def guests(short_dir: Path) -> Iterator[UserspaceWorld]:
    with userspace_world(short_dir) as made:
        yield made


@pytest.fixture
async def traffic(guests: UserspaceWorld) -> AsyncIterator[UserspaceTraffic]:
    made = guests.traffic()
    await made.start()
    yield made
    await made.close()
    await guests.clean()


def proxy_of(world: UserspaceWorld) -> psutil.Process:
    """The process that serves the socket, by its lock."""
    lock = world.socket.with_name(world.socket.name + ".lock")
    return psutil.Process(int(lock.read_text()))


def _runs(process: psutil.Process) -> bool:
    """Not if it waits for init to take note of its end."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _end(process: psutil.Process, number: signal.Signals) -> None:
    """Returns when all of it is gone: its sockets go with the last of its threads, and the first
    may have ended before. This loop stands still meanwhile, and with it the agent in it.
    """
    pidfd = os.pidfd_open(process.pid)
    try:
        process.send_signal(number)
        assert select.select([pidfd], [], [], 30)[0], "it does not end"
    finally:
        os.close(pidfd)


APPLYING = "UserspaceTraffic(d / 'traffic.sock', d / 'routes.json', d / 'traffic.log')"


async def test_a_kill_of_the_agent_under_load_fails_nothing(guests: UserspaceWorld) -> None:
    listen = free_listen()
    wanted = order(1, (listen, guests.endpoint("blue")))
    with agent_that_applied(wanted, guests.directory, APPLYING) as agent:
        async with connected(listen) as held:
            assert await who(held) == "blue"
            answers = 0
            async with asyncio.TaskGroup() as group:
                clients = [group.create_task(asks(listen, 50, "blue")) for _ in range(4)]
                agent.kill()
                answers = sum([await client for client in clients])
            assert answers == 200
            assert await who(held) == "blue"
    successor = guests.traffic()
    await successor.start()
    assert await successor.observe() == {wanted.deployment: wanted}
    await successor.close()
    await guests.clean()


async def test_a_killed_proxy_comes_back_by_itself_with_its_routes(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    listen, refusing = free_listen(), free_listen()
    wanted = order(4, (listen, guests.endpoint("blue")), (refusing, None), domain="a.example")
    await traffic.apply(wanted)
    before = proxy_of(guests)
    async with connected(listen) as held:
        assert await who(held) == "blue"
        before.kill()
        with pytest.raises(ConnectionResetError):
            await who(held)
    async with asyncio.timeout(20):
        while True:
            try:
                assert await ask(listen) == "blue"
                break
            except ConnectionError:
                await asyncio.sleep(0.01)
    assert proxy_of(guests).pid != before.pid
    assert await traffic.observe() == {wanted.deployment: wanted}


async def test_a_proxy_starts_without_the_command_line_too(guests: UserspaceWorld) -> None:
    plain = UserspaceTraffic(
        guests.socket,
        guests.directory / "routes.json",
        guests.directory / "traffic.log",
        command=(sys.executable, "-m", "agent.traffic.proxy"),
    )
    await plain.start()
    assert "agent.traffic.proxy" in proxy_of(guests).cmdline()
    await plain.shutdown()


@pytest.mark.root  # what it installs was fetched for the tests that need root
async def test_with_the_faster_loop_it_starts_and_serves_too(
    guests: UserspaceWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", tmp_path]
    subprocess.run([*pip, "--find-links", wheelhouse(), "uvloop"], check=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    traffic, listen = guests.traffic(), free_listen()
    await traffic.start()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    assert await ask(listen) == "blue"
    proxy = proxy_of(guests)
    assert any("uvloop" in one.path for one in proxy.memory_maps())
    await traffic.shutdown()
    assert not _runs(proxy)


async def test_a_detached_proxy_holds_nothing_open_of_who_started_it(
    guests: UserspaceWorld,
) -> None:
    """Who waits for the end of a pipe that its starter leaked would wait for the proxy's."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    command = [sys.executable, "-m", "agent.traffic.proxy", "--socket", guests.socket]
    command += ["--state", guests.directory / "routes.json", "--log", guests.directory / "log"]
    await asyncio.to_thread(subprocess.run, command, check=True, pass_fds=(writing,))
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 1) == b""
    os.close(reading)
    traffic = guests.traffic()
    await traffic.start()
    await traffic.shutdown()


async def test_an_order_starts_a_proxy_where_there_is_none(guests: UserspaceWorld) -> None:
    listen = free_listen()
    traffic = guests.traffic()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    proxy_of(guests).kill()
    await traffic.apply(order(2, (listen, guests.endpoint("green"))))
    assert await ask(listen) == "green"
    await traffic.close()
    await guests.clean()


async def test_a_proxy_that_died_leaves_a_lost_listener_out(guests: UserspaceWorld) -> None:
    listen, other = free_listen(), free_listen()
    traffic = guests.traffic()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    theirs = order(1, (other, guests.endpoint("green")), deployment="other")
    await traffic.apply(theirs)
    proxy = proxy_of(guests)
    _end(proxy, signal.SIGKILL)
    with socket.create_server((listen.address, listen.port)):
        assert await traffic.observe() == {theirs.deployment: theirs}
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    assert await ask(listen) == "blue"
    await traffic.close()
    await guests.clean()


async def test_several_agents_at_once_start_one_proxy(guests: UserspaceWorld) -> None:
    agents = [guests.traffic() for _ in range(3)]
    await asyncio.gather(*(agent.start() for agent in agents))
    name = str(guests.socket)
    running = psutil.process_iter(["cmdline"])
    proxies = [one for one in running if name in (one.info["cmdline"] or ())]
    assert [one.pid for one in proxies] == [proxy_of(guests).pid]
    for agent in agents:
        await agent.close()
    await guests.clean()


async def test_the_proxy_is_in_a_session_of_its_own_and_its_socket_private(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    pid = proxy_of(guests).pid
    assert os.getsid(pid) == pid
    assert stat.S_IMODE(guests.socket.stat().st_mode) == 0o600
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")


async def test_shutdown_ends_the_proxy_and_frees_its_ports(guests: UserspaceWorld) -> None:
    listen = free_listen()
    traffic = guests.traffic()
    await traffic.start()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    proxy = proxy_of(guests)
    await traffic.shutdown()
    assert not _runs(proxy)
    socket.create_server((listen.address, listen.port)).close()
    await traffic.shutdown()
    again = guests.traffic()
    await again.start()
    assert await again.observe() == {}
    await again.close()
    await guests.clean()


async def test_a_refusing_listener_is_held(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, None)))
    for address in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(OSError, match="in use"):
            socket.create_server((address, listen.port))
    await traffic.apply(order(2, (listen, guests.endpoint("blue"))))
    async with connected(listen) as held:
        assert await who(held) == "blue"
        await traffic.apply(order(3, (listen, None)))
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", listen.port))
        await traffic.apply(order(4, (listen, guests.endpoint("green"))))
        assert await ask(listen) == "green"


async def test_ipv6_listeners_are_served_beside_ipv4(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    loopback = free_listen("::1")
    any6 = free_listen("::")
    any4 = Listen(address="0.0.0.0", port=any6.port)
    blue, green = guests.endpoint("blue"), guests.endpoint("green")
    assert traffic.refusal(any6) is None
    await traffic.apply(order(1, (loopback, blue), (any6, blue), (any4, green)))
    assert await ask(loopback) == "blue"
    assert await ask(Listen(address="::1", port=any6.port)) == "blue"
    assert await ask(Listen(address="127.0.0.1", port=any6.port)) == "green"


@pytest.mark.parametrize("idle", ["client", "guest"])
async def test_a_side_that_does_not_read_costs_bounded_memory(
    guests: UserspaceWorld, traffic: UserspaceTraffic, idle: str
) -> None:
    listen, size = free_listen(), 20 * MIB
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    assert await ask(listen) == "blue"
    proxy = proxy_of(guests)
    before = proxy.memory_info().rss
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            reader, writer = await stack.enter_async_context(connected(listen))
            if idle == "client":
                writer.transport.pause_reading()
                writer.write(b"bulk %d\n" % size)
            else:
                assert await say((reader, writer), "hang") == "hanging"
                writer.write(b"x" * size)
        turns = -1
        while turns != (turns := proxy.num_ctx_switches().voluntary):  # until nothing moves
            await asyncio.sleep(0.3)
        assert proxy.memory_info().rss - before < 20 * MIB
        if idle == "client":
            writer.transport.resume_reading()
            assert len(await reader.readexactly(size)) == size
        await traffic.reset(guests.endpoint("blue"))


async def test_a_backlog_of_one_serves_a_crowd(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    """QEMU's user-mode network listens so, and accepts when its main loop comes round."""
    with socket.create_server(("127.99.7.9", 0), backlog=1) as narrow:
        narrow.setblocking(False)
        listen = free_listen()
        endpoint = Endpoint(address="127.99.7.9", port=narrow.getsockname()[1])
        await traffic.apply(order(1, (listen, endpoint)))

        async def guest() -> None:
            loop = asyncio.get_running_loop()
            for _ in range(60):
                await asyncio.sleep(0.005)
                accepted, _ = await loop.sock_accept(narrow)
                with accepted:
                    await loop.sock_sendall(accepted, b"narrow\n")

        async def client() -> str:
            async with connected(listen) as (reader, _):
                return (await reader.readline()).decode().strip()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(guest())
            clients = [group.create_task(client()) for _ in range(60)]
        assert {one.result() for one in clients} == {"narrow"}


@pytest.mark.slow
async def test_an_endpoint_that_never_answers_costs_its_clients_ten_seconds(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    with socket.create_server(("127.99.7.9", 0), backlog=0) as full:
        address = full.getsockname()
        filler = socket.create_connection(address)
        listen = free_listen()
        await traffic.apply(order(1, (listen, Endpoint(address=address[0], port=address[1]))))
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionResetError):
                await asyncio.gather(*(ask(listen) for _ in range(5)))
        filler.close()


async def test_a_reset_from_the_guest_reaches_the_client(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    with socket.create_server(("127.99.7.9", 0)) as guest:
        listen = free_listen()
        port = guest.getsockname()[1]
        await traffic.apply(order(1, (listen, Endpoint(address="127.99.7.9", port=port))))
        async with connected(listen) as (reader, _):
            accepted, _ = guest.accept()
            _close_with_reset(accepted)
            async with asyncio.timeout(2):
                with pytest.raises(ConnectionResetError):
                    await reader.read()


async def test_a_reset_from_the_client_reaches_the_guest(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    with socket.create_server(("127.99.7.9", 0)) as guest:
        listen = free_listen()
        endpoint = Endpoint(address="127.99.7.9", port=guest.getsockname()[1])
        await traffic.apply(order(1, (listen, endpoint)))
        client = socket.create_connection((listen.address, listen.port))
        accepted, _ = guest.accept()
        accepted.settimeout(2)
        _close_with_reset(client)
        with accepted, pytest.raises(ConnectionResetError):
            accepted.recv(1)
        assert await traffic.connections(endpoint) == 0


def _close_with_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_a_client_that_waits_for_its_endpoint_counts_and_can_be_reset(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    with socket.create_server(("127.99.7.9", 0), backlog=0) as full:
        address = full.getsockname()
        filler = socket.create_connection(address)
        listen, endpoint = free_listen(), Endpoint(address=address[0], port=address[1])
        await traffic.apply(order(1, (listen, endpoint)))
        async with connected(listen) as (reader, _):
            while await traffic.connections(endpoint) != 1:
                await asyncio.sleep(0)
            assert await traffic.reset(endpoint) == 1
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert await traffic.connections(endpoint) == 0
        filler.close()


async def test_a_request_of_a_dead_agent_is_carried_out(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    listen = free_listen()
    wanted = order(1, (listen, guests.endpoint("blue")))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.connect(str(guests.socket))
        dead.sendall(b'{"op":"apply","order":' + msgspec.json.encode(wanted) + b"}\n")
    async with asyncio.timeout(10):
        while await traffic.observe() != {wanted.deployment: wanted}:
            await asyncio.sleep(0)
    assert await ask(listen) == "blue"


@pytest.mark.parametrize(
    "line", [b"{}\n", b"hello\n", b'{"op":"apply"}\n', b"\xff\n", b"x" * (5 * MIB), b'{"op":1}\n']
)
async def test_nonsense_on_the_control_socket_is_survived(
    guests: UserspaceWorld, traffic: UserspaceTraffic, line: bytes
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    reader, writer = await asyncio.open_unix_connection(guests.socket)
    with contextlib.suppress(ConnectionError):
        writer.write(line)
        await writer.drain()
        if line.endswith(b"\n"):
            assert b"error" in await reader.readline()
        else:
            assert await reader.read() == b""
    writer.close()
    assert await ask(listen) == "blue"
    assert _runs(proxy_of(guests))


async def test_an_order_that_cannot_be_made_durable_changes_nothing(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    listen, more = free_listen(), free_listen()
    blue = guests.endpoint("blue")
    wanted = order(1, (listen, blue))
    await traffic.apply(wanted)
    state = guests.directory / "routes.json"
    kept = guests.directory / "kept.json"
    state.rename(kept)
    state.mkdir()  # nothing can be renamed over a directory
    with pytest.raises(TrafficError, match=r"routes\.json"):
        await traffic.apply(order(2, (listen, None), (more, blue)))
    state.rmdir()
    kept.rename(state)
    assert await traffic.observe() == {wanted.deployment: wanted}
    assert await ask(listen) == "blue"
    with pytest.raises(ConnectionRefusedError):
        await ask(more)
    socket.create_server((more.address, more.port)).close()


async def test_a_proxy_that_cannot_start_says_why(guests: UserspaceWorld) -> None:
    traffic = UserspaceTraffic(
        guests.directory / "missing" / "traffic.sock",
        guests.directory / "routes.json",
        guests.directory / "traffic.log",
    )
    with pytest.raises(TrafficError, match="missing"):
        await traffic.start()


async def test_sigterm_ends_the_proxy_and_its_routes_come_back(guests: UserspaceWorld) -> None:
    listen = free_listen()
    wanted = order(3, (listen, guests.endpoint("blue")))
    traffic = guests.traffic()
    await traffic.apply(wanted)
    proxy = proxy_of(guests)
    _end(proxy, signal.SIGTERM)
    assert await traffic.observe() == {wanted.deployment: wanted}
    assert await ask(listen) == "blue"
    await traffic.close()
    await guests.clean()


async def test_a_listener_that_a_program_has_is_refused_with_its_name(
    guests: UserspaceWorld, traffic: UserspaceTraffic
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = Listen(address="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(TrafficError) as refused:
            await traffic.apply(order(1, (listen, guests.endpoint("blue"))))
    assert str(listen) in str(refused.value)
    assert f"(process {os.getpid()})" in str(refused.value)
