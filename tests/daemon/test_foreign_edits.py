"""Somebody edits our table in the kernel, or wants our ports, while the daemon runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon, kill_all, processes_in
from tests.fakes.host_truth import discrepancies

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

SOON_S = 2.0  # the kernel tells of every change
PORTS_S = 30.0  # they are looked at every ten seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(releases: Path) -> AsyncIterator[Daemon]:
    """On taps, with `hello` v1 deployed."""
    async with running(releases, mode="tap") as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


@pytest.fixture
def somebodys(daemon: Daemon) -> Iterator[str]:
    """The name of a table that is not ours, with a map that reads like ours."""
    name = f"somebody_{daemon.bridge}"
    nft(
        f"table inet {name} {{ map exact {{ type ipv4_addr . inet_service : ipv4_addr . "
        "inet_service; elements = { 192.0.2.1 . 80 : 192.0.2.2 . 8080 }; }; }"
    )
    yield name
    nft(f"delete table inet {name}")


def nft(text: str) -> str:
    done = subprocess.run(
        ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(what: str, *names: str) -> str:
    argv = ["nft", "list", what, "inet", *names]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


async def ask(daemon: Daemon) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", daemon.plain)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    try:
        writer.write(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n")
        return str(json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["version"])
    finally:
        writer.close()


def edit(daemon: Daemon, how: str) -> str:
    """What is given to nft."""
    table = f"enclave_agent_{daemon.bridge}"
    if how == "flush":
        return f"flush map inet {table} exact"
    if how == "drop":
        return f"delete table inet {table}"
    key = rf"127\.0\.0\.1 \. {daemon.plain}\b"
    found = re.search(rf"({key}) : [\d.]+ \. \d+", listed("map", table, "exact"))
    assert found is not None
    return f"delete element inet {table} exact {{ {found[1]} }}"


@pytest.mark.parametrize("how", ["flush", "delete", "drop"])
async def test_what_somebody_takes_from_our_table_is_back_soon_and_theirs_is_left_alone(
    daemon: Daemon, somebodys: str, how: str
) -> None:
    theirs = listed("table", somebodys)
    open_before = await ask(daemon)
    nft(edit(daemon, how))
    began = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 - refused, or sent nowhere
        async with asyncio.timeout(1):
            await answer(*await ask(daemon))
    while time.monotonic() - began < SOON_S:
        try:
            async with asyncio.timeout(1):
                said = await answer(*await ask(daemon))
        except OSError:
            await asyncio.sleep(0.1)
        else:
            assert said == "v1"
            break
    else:
        raise AssertionError(f"not back after {SOON_S} s: {daemon.log_tail()}")
    assert await answer(*open_before) == "v1"
    assert listed("table", somebodys) == theirs
    assert await discrepancies(daemon) == []


def bind(daemon: Daemon, address: str) -> socket.socket:
    """As a server of the host does that wants this port. Raises OSError."""
    return socket.create_server((address, daemon.plain))


async def problems(daemon: Daemon, *codes: str) -> list[str]:
    """The details, once the problems are these."""
    async with asyncio.timeout(PORTS_S):
        while True:
            shown = (await daemon.get("/status")).body["problems"]
            if [one["code"] for one in shown] == list(codes):
                return [one["detail"] for one in shown]
            await asyncio.sleep(0.2)


async def test_a_published_port_is_had_by_no_program_whatever_becomes_of_agent_and_deployment(
    daemon: Daemon,
) -> None:
    """But for one that is there before the port can be held again: it is named, and left alone."""

    def held() -> None:
        for address in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(OSError, match="in use"):
                bind(daemon, address)

    held()
    daemon.kill()
    held()
    assert await answer(*await ask(daemon)) == "v1"
    await daemon.up()
    held()
    assert (await daemon.send("POST", "/v1/deployments/hello/stop")).status == 202
    await daemon.until(lambda seen: seen["status"] == "stopped" and not seen["enclaves"])
    held()
    daemon.kill()
    (holder,) = (
        pid
        for pid, argv in processes_in(daemon.home).items()
        if f"{daemon.run}/ports.sock" in argv
    )
    kill_all({holder: None})
    with bind(daemon, "127.0.0.1") as server:
        await daemon.up()
        (detail,) = await problems(daemon, "listener_taken")
        assert f"(process {os.getpid()})" in detail
        assert "hello" in detail
        reader, writer = await ask(daemon)  # it is not refused for the program
        server.accept()[0].close()
        assert await reader.read() == b""
        writer.close()
        refused = await daemon.send("POST", "/v1/deployments/hello/start")
        assert refused.body["code"] == "listen_in_use", refused
        assert f"(process {os.getpid()})" in refused.body["detail"]
    await problems(daemon)
    held()
    assert await discrepancies(daemon) == []
