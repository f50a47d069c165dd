"""Sockets: who may connect, whose place is taken, what is handed over."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import aiohttp
import pytest

from agent.api.listeners import ListenError, inherited, local_listener, remove, tcp_listener
from agent.api.roles import Role
from agent.api.server import ApiServer
from tests.fakes.api_server import surface_of
from tests.fakes.engine import FakeEngine


def test_the_unix_socket_is_for_owner_and_group_only(short_dir: Path) -> None:
    listener = local_listener(short_dir / "a.sock")
    try:
        assert stat.S_IMODE((short_dir / "a.sock").stat().st_mode) == 0o660
    finally:
        listener.sock.close()


def test_a_dead_agent_leaves_its_place_to_the_next(short_dir: Path) -> None:
    local_listener(short_dir / "a.sock").sock.close()
    local_listener(short_dir / "a.sock").sock.close()


def test_a_live_agent_keeps_its_place(short_dir: Path) -> None:
    first = local_listener(short_dir / "a.sock")
    with pytest.raises(ListenError, match="another agent listens"):
        local_listener(short_dir / "a.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(short_dir / "a.sock"))
    first.sock.close()


def test_a_file_that_is_no_socket_is_left_alone(short_dir: Path) -> None:
    (short_dir / "a.sock").write_text("precious")
    with pytest.raises(ListenError, match="is no socket"):
        local_listener(short_dir / "a.sock")
    assert (short_dir / "a.sock").read_text() == "precious"


def test_a_path_that_is_too_long_or_not_there_is_told(short_dir: Path) -> None:
    with pytest.raises(ListenError, match="at most 107 bytes"):
        local_listener(short_dir / ("x" * 108))
    with pytest.raises(ListenError, match="No such file"):
        local_listener(short_dir / "no" / "a.sock")


def test_only_ones_own_socket_is_removed(short_dir: Path) -> None:
    path = short_dir / "a.sock"
    first = local_listener(path)
    first.sock.close()
    second = local_listener(path)
    remove(first)
    assert path.exists()
    remove(second)
    assert not path.exists()
    second.sock.close()


def test_a_port_that_is_taken_is_told() -> None:
    first = tcp_listener("127.0.0.1", 0, Role.STATUS)
    port = first.sock.getsockname()[1]
    with pytest.raises(ListenError, match=f"127.0.0.1:{port}"):
        tcp_listener("127.0.0.1", port, Role.STATUS)
    first.sock.close()


def _hand_over(*socks: socket.socket) -> int:
    """Duplicate them to descriptors in a row, as the service manager does; returns the first."""
    first = 200
    for n, sock in enumerate(socks):
        assert fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, first + n) == first + n
    return first


async def test_sockets_that_were_handed_over_are_served(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        unix.bind(str(short_dir / "given.sock"))
        unix.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        port = tcp.getsockname()[1]
        environ = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "enclave-agent.socket:status",
            "OTHER": "stays",
        }
        given = inherited(environ, first_fd=_hand_over(unix, tcp))
    assert environ == {"OTHER": "stays"}
    assert set(given) == {"local", "status"}
    assert not any(sock.get_inheritable() for sock in given.values())
    listeners = [
        local_listener(short_dir / "unused.sock", given["local"]),
        tcp_listener("127.0.0.1", 1, Role.STATUS, given=given["status"]),
    ]
    server = ApiServer(surface_of(FakeEngine()), listeners)
    await server.start()
    connector = aiohttp.UnixConnector(str(short_dir / "given.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get("http://agent/v1/deployments") as response:
            assert response.status == 200
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/v1/deployments") as response:
            assert response.status == 403
    await server.close()
    assert (short_dir / "given.sock").exists()
    assert not (short_dir / "unused.sock").exists()


def test_descriptors_meant_for_another_process_are_not_taken() -> None:
    assert inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == {}
    assert inherited({}) == {}


def test_a_tcp_socket_without_a_name_is_refused() -> None:
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
        with pytest.raises(ListenError, match="'web'"):
            inherited(environ, first_fd=_hand_over(tcp))


async def test_a_server_that_cannot_start_leaves_nothing_serving(short_dir: Path) -> None:
    good = local_listener(short_dir / "a.sock")
    bad = tcp_listener("127.0.0.1", 0, Role.STATUS)
    bad.sock.close()
    server = ApiServer(surface_of(FakeEngine()), [good, bad])
    with pytest.raises(OSError):  # noqa: PT011 - which one is the loop's to say
        await server.start()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError):  # noqa: PT011
        client.connect(str(short_dir / "a.sock"))


async def test_closing_lets_a_request_under_way_finish(short_dir: Path) -> None:
    import asyncio

    from tests.api_bodies import DEPLOY

    class Slow(FakeEngine):
        begun = asyncio.Event()
        go = asyncio.Event()

        async def deploy(self, request, caller):
            self.begun.set()
            await self.go.wait()
            return await super().deploy(request, caller)

    engine = Slow()
    server = ApiServer(surface_of(engine), [local_listener(short_dir / "a.sock")])
    await server.start()
    connector = aiohttp.UnixConnector(str(short_dir / "a.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask() -> int:
            url = "http://agent/v1/deployments/web"
            async with session.put(url, json=DEPLOY) as response:
                return response.status

        asked = asyncio.create_task(ask())
        await engine.begun.wait()
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        engine.go.set()
        assert await asked == 202
        await closing
