"""Published ports are kept from other programs, also while nothing is served there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from agent.host.commands import CompletedCommand
from agent.host.process import find_by_option
from agent.model.resources import Listen
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.holding import ProcessHolder
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.port import TrafficError
from agent.traffic.userspace import UserspaceTraffic
from tests.traffic.clients import ask
from tests.traffic.worlds import (
    BRIDGE,
    SUBNET,
    HaproxyWorld,
    NftablesWorld,
    free_listen,
    haproxy_world,
    nftables_world,
    order,
)


def can_be_taken(listen: Listen) -> bool:
    """As a server asks for a port: by its address, and by all of them."""
    family = socket.AF_INET6 if listen.is_ipv6 else socket.AF_INET
    for address in (listen.address, "::" if listen.is_ipv6 else "0.0.0.0"):
        for reuse in (1, 0):
            with socket.socket(family) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                if listen.is_ipv6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                with contextlib.suppress(OSError):
                    server.bind((address, listen.port))
                    server.listen()
                    return True
    return False


def process_in(directory: Path, answer_s: float = 15) -> UserspaceTraffic:
    return UserspaceTraffic(
        directory / "ports.sock",
        directory / "ports.json",
        directory / "ports.log",
        answer_s=answer_s,
    )


def pids_in(directory: Path) -> list[int]:
    path = str(directory / "ports.sock")
    return find_by_option("--socket", [path])[path]


@contextlib.contextmanager
def program_at(listen: Listen) -> Iterator[int]:
    """Another program of this host; its pid."""
    code = "import socket,sys; s=socket.create_server((sys.argv[1],int(sys.argv[2])));print(1)"
    code += "\nwhile 1:\n c,_=s.accept(); c.sendall(b'program\\n'); c.close()"
    argv = [sys.executable, "-uc", code, listen.address, str(listen.port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture(autouse=True)
async def _ends(short_dir: Path) -> AsyncIterator[None]:
    yield
    await ProcessHolder(process_in(short_dir)).shutdown()


@pytest.fixture
async def holder(short_dir: Path) -> AsyncIterator[ProcessHolder]:
    made = ProcessHolder(process_in(short_dir))
    yield made
    await made.close()


async def test_what_is_held_refuses_clients_and_is_had_by_nobody(holder: ProcessHolder) -> None:
    listens = [free_listen(), free_listen("0.0.0.0"), free_listen("::1")]
    assert await holder.keep(listens) == {}
    assert not any(map(can_be_taken, listens))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", listens[1].port)
    assert await holder.keep(listens[:1]) == {}
    assert [can_be_taken(one) for one in listens] == [False, True, True]


async def test_the_holder_outlives_the_agent_and_a_kill(
    holder: ProcessHolder, short_dir: Path
) -> None:
    listen, later = free_listen(), free_listen()
    await holder.keep([listen])
    await holder.close()
    assert not can_be_taken(listen)
    again = ProcessHolder(process_in(short_dir))
    assert await again.keep([listen]) == {}
    (pid,) = pids_in(short_dir)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while pids_in(short_dir) in ([], [pid]) or can_be_taken(listen):
            await asyncio.sleep(0.05)
    assert await again.keep([listen, later]) == {}
    assert not can_be_taken(later)
    await again.keep([])
    assert can_be_taken(listen)
    await again.shutdown()
    assert pids_in(short_dir) == []


async def test_a_holder_that_hangs_is_ended_and_keeps_nothing_from_us(short_dir: Path) -> None:
    listen, holder = free_listen(), ProcessHolder(process_in(short_dir, answer_s=1), again_s=0)
    await holder.keep([listen])
    (pid,) = pids_in(short_dir)
    os.kill(pid, signal.SIGSTOP)
    unheld = await holder.keep([])
    assert unheld == {}
    async with asyncio.timeout(10):
        while pid in pids_in(short_dir):
            await asyncio.sleep(0.05)
    assert await holder.keep([listen]) == {}
    await holder.close()


async def test_a_holder_that_cannot_be_had_costs_nobody_time(short_dir: Path) -> None:
    starts: list[float] = []

    async def failing(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        starts.append(timeout_s)
        return CompletedCommand(1, b"", b"no such program\n")

    process = UserspaceTraffic(
        short_dir / "ports.sock", short_dir / "s", short_dir / "l", run_command=failing
    )
    listen, holder = free_listen(), ProcessHolder(process)
    for _ in range(3):
        unheld = await holder.keep([listen])
        assert unheld[listen].program is None
        assert "no such program" in unheld[listen].why
    assert len(starts) == 1
    assert await holder.keep([]) == {}


async def test_a_port_that_is_another_programs_is_told_with_its_name(
    holder: ProcessHolder,
) -> None:
    listen, free = free_listen(), free_listen()
    with program_at(listen) as pid:
        unheld = await holder.keep([listen, free])
        assert list(unheld) == [listen]
        assert f"(process {pid})" in (unheld[listen].program or "")
        assert str(listen) in (unheld[listen].program or "")
        assert not can_be_taken(free)
    assert await holder.keep([listen, free]) == {}


# --- nftables


@pytest.fixture
def host(short_dir: Path) -> Iterator[NftablesWorld]:
    with nftables_world(short_dir) as made:
        yield made


def nftables_of(host: NftablesWorld) -> NftablesTraffic:
    holder = ProcessHolder(process_in(host.directory))
    return NftablesTraffic(BRIDGE, SUBNET, (), state_file=host.state_file, holder=holder)


@pytest.mark.root
async def test_nftables_holds_on_while_its_table_is_taken_away(host: NftablesWorld) -> None:
    """Another program flushed the ruleset, which was seen and is not mended yet."""
    traffic, listen = nftables_of(host), free_listen()
    await traffic.start()
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert await traffic.observe() == {}
    assert await traffic.hold_ports() == {}
    assert not can_be_taken(listen)
    await traffic.mend()
    assert await traffic.hold_ports() == {}
    assert not can_be_taken(listen)
    await traffic.close()


@pytest.mark.root
async def test_nftables_holds_what_it_serves_and_what_is_stopped(host: NftablesWorld) -> None:
    traffic, blue = nftables_of(host), host.endpoint("blue")
    exact, wildcard = free_listen(), free_listen("0.0.0.0")
    await traffic.start()
    await traffic.apply(order(1, (exact, blue), (wildcard, blue)))
    assert [await ask(exact), await ask(wildcard)] == ["blue", "blue"]
    assert not can_be_taken(exact)
    assert not can_be_taken(wildcard)
    await traffic.apply(order(2, (exact, None), (wildcard, None)))
    assert not can_be_taken(exact)
    assert not can_be_taken(wildcard)
    await traffic.close()
    assert not can_be_taken(exact)
    again = nftables_of(host)
    await again.start()
    assert order(2).deployment in await again.observe()
    assert await again.hold_ports() == {}
    assert not can_be_taken(exact)
    await again.apply(order(3, (exact, blue)))
    assert await ask(exact) == "blue"
    assert await again.hold_ports() == {}
    assert [can_be_taken(exact), can_be_taken(wildcard)] == [False, True]
    await again.remove(order(3).deployment)
    assert can_be_taken(exact)
    assert pids_in(host.directory) == []
    await again.restore()


@pytest.mark.root
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_a_program_that_was_quicker_has_its_clients_while_the_deployment_is_stopped(
    host: NftablesWorld, address: str
) -> None:
    """As where it took the port under an earlier version, that held none."""
    listen, blue = free_listen(address), host.endpoint("blue")
    earlier = host.traffic()
    await earlier.start()
    await earlier.apply(order(1, (listen, blue)))
    with program_at(listen) as pid:
        traffic = nftables_of(host)
        await traffic.start()
        assert await traffic.observe() == {order(1).deployment: order(1, (listen, blue))}
        unheld = await traffic.hold_ports()
        assert f"(process {pid})" in (unheld[listen].program or "")
        assert await ask(listen) == "blue"  # it serves as it did
        await traffic.apply(order(2, (listen, None)))
        assert await traffic.observe() == {order(2).deployment: order(2, (listen, None))}
        assert await traffic.hold_ports() == unheld
        assert await ask(listen) == "program"
        assert await traffic.observe() == {order(2).deployment: order(2, (listen, None))}
        other = order(1, (listen, blue), deployment="other")
        with pytest.raises(TrafficError, match="taken by hello"):
            await traffic.apply(other)
    assert await traffic.hold_ports() == {}
    assert not can_be_taken(listen)
    with pytest.raises(ConnectionRefusedError):
        await ask(listen)
    await traffic.restore()


@pytest.mark.root
async def test_a_listener_that_a_program_has_is_refused_with_its_name(host: NftablesWorld) -> None:
    traffic, listen = nftables_of(host), free_listen()
    await traffic.start()
    with program_at(listen) as pid, pytest.raises(TrafficError, match=rf"process {pid}\)"):
        await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    await traffic.restore()


# --- HAProxy


@pytest.fixture
async def guests(short_dir: Path) -> AsyncIterator[HaproxyWorld]:
    with haproxy_world(short_dir) as made:
        yield made
        await made.clean()


def haproxy_of(guests: HaproxyWorld) -> HaproxyTraffic:
    holder = ProcessHolder(process_in(guests.directory))
    return HaproxyTraffic(guests.run_dir, guests.state_file, holder=holder)


async def test_haproxy_serves_held_ports_again_and_holds_paused_ones(
    guests: HaproxyWorld,
) -> None:
    traffic, blue = haproxy_of(guests), guests.endpoint("blue")
    one, other, third = free_listen(), free_listen("0.0.0.0"), free_listen()
    await traffic.start()
    await traffic.apply(order(1, (one, None), (other, None)))
    assert not can_be_taken(one)
    assert not can_be_taken(other)
    for generation in (2, 4):
        await traffic.apply(order(generation, (one, blue), (other, None)))
        assert await ask(one) == "blue"
        assert not can_be_taken(one)
        assert not can_be_taken(other)
        await traffic.apply(order(generation + 1, (one, None), (other, None)))
        with pytest.raises(ConnectionRefusedError):
            await ask(one)
        assert not can_be_taken(one)
    # Another set of listeners takes another process, which listens on all of them at first.
    await traffic.apply(order(1, (third, blue), deployment="more"))
    assert await ask(third) == "blue"
    assert not can_be_taken(one)
    assert await traffic.hold_ports() == {}
    await traffic.close()
    assert not can_be_taken(one)
    again = haproxy_of(guests)
    await again.start()
    await again.apply(order(6, (one, blue), (other, blue)))
    assert [await ask(one), await ask(other)] == ["blue", "blue"]
    for name in ("hello", "more"):
        await again.remove(order(1, deployment=name).deployment)
    await again.hold_ports()
    assert pids_in(guests.directory) == []
    await again.shutdown()


async def test_haproxy_comes_back_beside_what_is_held(guests: HaproxyWorld) -> None:
    traffic, blue = haproxy_of(guests), guests.endpoint("blue")
    serving, stopped = free_listen(), free_listen()
    await traffic.start()
    await traffic.apply(order(1, (serving, blue), (stopped, None)))
    config = [str(path) for path in guests.run_dir.glob("*/haproxy.cfg")]
    for pids in find_by_option("-f", config).values():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ConnectionError, TrafficError):
                assert await ask(serving) == "blue"
                await traffic.observe()
                break
            await asyncio.sleep(0.05)
    assert not can_be_taken(stopped)
    await traffic.shutdown()
