"""Another program takes our table away, or it is made anew, at the worst moments of a reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest

from agent.host.commands import CommandError, CompletedCommand, run_command
from agent.model.resources import Listen
from agent.traffic import resetting
from agent.traffic.conntrack import Flow
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.port import TrafficError
from tests.traffic.clients import ask
from tests.traffic.worlds import BRIDGE, SUBNET, NftablesWorld, free_listen, order

TABLE = "enclave_agent"

pytestmark = pytest.mark.root

Before = Callable[[Sequence[str], str], Awaitable[None]]


def nft(*argv: str) -> str:
    done = subprocess.run(["nft", *argv], check=True, capture_output=True, text=True)
    return done.stdout


def traffic_of(host: NftablesWorld, before: Before) -> NftablesTraffic:
    """`before` is told of each command that is about to run, with its standard input."""

    async def run(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        await before(argv, stdin.decode())
        return await run_command(argv, stdin=stdin, timeout_s=timeout_s)

    return NftablesTraffic(BRIDGE, SUBNET, (), state_file=host.state_file, run_command=run)


@contextlib.contextmanager
def client_of(listen: Listen) -> Iterator[socket.socket]:
    with socket.create_connection((listen.address, listen.port), timeout=30) as made:
        made.sendall(b"who\n")
        assert made.recv(100).startswith(b"blue")
        yield made


async def proves_sound(listen: Listen) -> None:
    """An endpoint that stayed there would have every connection to it reset for good."""
    assert "elements" not in nft("list", "set", "inet", TABLE, "resetting")
    assert await ask(listen) == "blue"


@pytest.mark.parametrize("moment", ["add", "delete"])
async def test_a_flush_before_either_end_of_a_reset_hinders_nothing(
    host: NftablesWorld, moment: str
) -> None:
    mends: list[asyncio.Task[object]] = []

    async def flush(_: Sequence[str], text: str) -> None:
        if text.startswith(f"{moment} element inet {TABLE} resetting") and not mends:
            nft("flush", "ruleset")
            mends.append(asyncio.create_task(traffic.mend()))  # as the watch does

    traffic, listen, endpoint = traffic_of(host, flush), free_listen(), host.endpoint("blue")
    await traffic.start()
    wanted = order(1, (listen, endpoint))
    await traffic.apply(wanted)
    with client_of(listen) as client:
        assert await traffic.reset(endpoint) == 1
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    await asyncio.gather(*mends)
    assert len(mends) == 1
    assert await traffic.observe() == {wanted.deployment: wanted}
    await proves_sound(listen)


async def test_a_table_that_is_made_anew_as_a_reset_ends_keeps_nothing_of_it(
    host: NftablesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_anew = threading.Event()
    tasks: list[asyncio.Task[object]] = []
    provoke = resetting.provoke

    def provoke_then(flows: Sequence[Flow]) -> None:
        """The reset is not over before the table is about to be made anew with its endpoint."""
        assert made_anew.wait(30)
        provoke(flows)

    monkeypatch.setattr(resetting, "provoke", provoke_then)

    async def hold(argv: Sequence[str], text: str) -> None:
        if not tasks:
            return
        if text.startswith(f"add element inet {TABLE} resetting"):
            nft("flush", "map", "inet", TABLE, "exact")
            tasks.append(asyncio.create_task(traffic.mend()))
        elif f"add element inet {TABLE} resetting" in text:
            made_anew.set()
            await asyncio.wait(tasks[:1], timeout=0.5)  # the reset may end now, if it can

    traffic, listen, endpoint = traffic_of(host, hold), free_listen(), host.endpoint("blue")
    await traffic.start()
    await traffic.apply(order(1, (listen, endpoint)))
    with client_of(listen):
        tasks.append(asyncio.create_task(traffic.reset(endpoint)))
        assert await tasks[0] == 1
    await asyncio.gather(*tasks)
    assert made_anew.is_set()
    await proves_sound(listen)


async def test_a_reset_that_fails_leaves_nothing_for_a_table_that_is_made_anew(
    host: NftablesWorld,
) -> None:
    async def refuse(_: Sequence[str], text: str) -> None:
        if text.startswith(f"add element inet {TABLE} resetting"):
            raise CommandError("nft", "it is not there")

    traffic, listen, endpoint = traffic_of(host, refuse), free_listen(), host.endpoint("blue")
    await traffic.start()
    await traffic.apply(order(1, (listen, endpoint)))
    with client_of(listen):
        with pytest.raises(TrafficError, match="nft did not do its work"):
            await traffic.reset(endpoint)
    nft("flush", "ruleset")
    await traffic.mend()
    await proves_sound(listen)
