"""The egress policy in the filters of taps, where the data plane is not nftables.

What a guest reaches is tried from a stack of its own on a real tap; the programs are tried against
the policy's own words with an interpreter of classic BPF in test_tap_egress_programs.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.model.egress import EgressPolicy
from tests.fakes.netns import ip
from tests.traffic.egress_world import (
    BLUE,
    INTERNET,
    LINK_LOCAL,
    METADATA,
    PRIVATE,
    WEB,
    EgressWorld,
    egress_world,
    network,
    policy,
)
from tests.traffic.worlds import CLIENT, GATEWAY, OUTSIDE, PORTS

SSH = 2222

pytestmark = pytest.mark.root


@contextlib.asynccontextmanager
async def world_of(directory: Path, of: EgressPolicy) -> AsyncIterator[EgressWorld]:
    """The host forwards and translates for guests by itself, as ours would."""
    async with egress_world(directory, network(of, (SSH,))) as world:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        subprocess.run(["nft", "-f", "-"], input=TRANSLATION, check=True)
        with socket.create_server(("0.0.0.0", SSH)), socket.create_server(("0.0.0.0", 22)):
            yield world


TRANSLATION = b"""
add table ip host
add chain ip host post { type nat hook postrouting priority srcnat; }
add rule ip host post oifname trtclient masquerade
"""


def every(addresses: tuple[str, ...], outcome: str) -> dict[str, str]:
    return dict.fromkeys(addresses, outcome)


async def test_internet_is_held_and_the_host_reaches_its_guests(short_dir: Path) -> None:
    async with world_of(short_dir, policy("internet", "10.0.0.0/8:80")) as world:
        opened = (INTERNET, "10.1.2.3")
        assert world.opened(*opened) == every(opened, "connected")
        closed = ("172.31.0.9", METADATA[0], CLIENT)
        assert world.reached(*closed) == every(closed, "timed out")
        assert world.reached(OUTSIDE, port=22) == {OUTSIDE: "timed out"}
        assert world.opened(GATEWAY, port=SSH) == {GATEWAY: "connected"}
        assert world.reached(GATEWAY, port=22) == {GATEWAY: "timed out"}
        with socket.create_connection((BLUE, PORTS[0]), timeout=1) as client:
            client.sendall(b"who\n")
            assert client.recv(100).startswith(b"blue")


async def test_none_leaves_the_hosts_opened_ports_and_any_closes_metadata(
    short_dir: Path,
) -> None:
    async with world_of(short_dir, policy("none")) as world:
        assert world.reached(INTERNET) == {INTERNET: "timed out"}
        assert world.opened(GATEWAY, port=SSH) == {GATEWAY: "connected"}
    async with world_of(short_dir, policy("any")) as world:
        opened = (INTERNET, PRIVATE[0], CLIENT)
        assert world.opened(*opened) == every(opened, "connected")
        closed = (METADATA[0], LINK_LOCAL)
        assert world.reached(*closed) == every(closed, "timed out")


async def test_a_network_that_the_host_comes_onto_is_closed_within_two_seconds(
    short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of = policy("internet")
    async with world_of(short_dir, of) as world:
        assert world.opened(INTERNET) == {INTERNET: "connected"}
        watch = asyncio.create_task(network(of, (SSH,)).watch())
        await asyncio.sleep(0.2)
        ip("addr add 203.0.113.1/24 dev trtclient")
        async with asyncio.timeout(3):  # of which each try that is dropped takes one
            while (await asyncio.to_thread(world.reached, INTERNET)) == {INTERNET: "connected"}:
                await asyncio.sleep(0.05)
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    assert "the filter of a link was changed" not in caplog.text


async def test_a_guest_of_an_earlier_policy_is_held_to_the_new_one(short_dir: Path) -> None:
    async with world_of(short_dir, policy("any")) as world:
        assert world.opened(PRIVATE[0]) == {PRIVATE[0]: "connected"}
        await network(policy("internet")).start()
        assert world.reached(PRIVATE[0], INTERNET, port=WEB) == {
            PRIVATE[0]: "timed out",
            INTERNET: "connected",
        }
