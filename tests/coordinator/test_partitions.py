"""An update with the network cut, either way, in each step, and whoever killed: the same end.

Each daemon lives in a network namespace of its own, joined to the coordinator's by one link. It is
halted at the first moment of a step (see `tests.fakes.halting_daemon`), the link is cut, somebody
is killed or nobody; the halted goes on, and after a while the link is healed. The suite takes a
sample with cuts of 10 s; `scripts/soak --link` takes every step, way and victim with minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.coordinator.test_link import body
from tests.coordinator.wires import WAYS, Wire, elsewhere
from tests.coordinator.world import Coordinator, join, same_end
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import settings
from tests.fakes.fleet import HOST
from tests.fakes.host_truth import discrepancies

WHOLE = os.environ.get("ENCLAVE_AGENT_FULL_MATRIX") == "1"
CUT_S = float(os.environ.get("ENCLAVE_AGENT_CUT_S", "90" if WHOLE else "10"))
SESSION_S = 3
AT_ONCE = 6  # worlds, which mostly wait
_HELLO = "/v1/deployments/hello"
_LONG_S = CUT_S + 90
pytestmark = [pytest.mark.slow, pytest.mark.root]
TAKES_LONG = pytest.mark.timeout(24 * 3600 if WHOLE else 120)

# `release` is passed without being recorded where nothing has to be cleaned: it needs GPUs.
STEPS = {
    "blue_green": ("prepare", "launch", "boot", "verify", "switch", "soak", "drain", "retire"),
    "stop_then_start": (*("prepare", "stop_old", "launch", "boot", "verify", "switch", "soak"),),
}
_CONNECT = """
import socket, sys, time
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
print(sock.recv(4096).split()[1].decode(), flush=True)
time.sleep(3600)
"""
VICTIMS = ("nobody", "agent", "coordinator")


@dataclass(frozen=True)
class Case:
    """One cut."""

    strategy: str
    step: str
    way: str
    victim: str

    def __str__(self) -> str:
        return f"{self.strategy}/{self.step}, cut {self.way}, {self.victim} killed"


EVERY = [
    Case(strategy, step, way, victim)
    for strategy, steps in STEPS.items()
    for step, way, victim in itertools.product(steps, WAYS, VICTIMS)
]
SAMPLE = [
    Case("blue_green", "prepare", "both", "coordinator"),
    Case("blue_green", "boot", "to", "nobody"),
    Case("blue_green", "switch", "from", "agent"),
    Case("blue_green", "drain", "both", "nobody"),
    Case("stop_then_start", "stop_old", "both", "agent"),
    Case("stop_then_start", "verify", "from", "coordinator"),
]


@contextlib.asynccontextmanager
async def apart(
    parts: tuple[Path, Path], number: int = 0
) -> AsyncIterator[tuple[Daemon, Coordinator, Wire]]:
    program, source = parts
    with elsewhere(number) as wire:
        coordinator = Coordinator(place("eac-"), address=wire.ours)
        coordinator.start()
        coordinator.ledger.set("session_ttl_s", SESSION_S)
        home = place()
        halting = (sys.executable, "-m", "tests.fakes.halting_daemon")
        orders = ("--orders", str(home / "orders"))
        daemon = Daemon(home, source, settings=settings(program))
        daemon.command = (*wire.enter, *halting, *orders)
        join(daemon, coordinator, rpc="0.0.0.0")
        try:
            await daemon.up()
            await coordinator.until(lambda: coordinator.ledger.report(HOST))
            yield daemon, coordinator, wire
        finally:
            await daemon.leave()
            coordinator.leave()


@contextlib.contextmanager
def lasting_connection(daemon: Daemon, wire: Wire) -> Iterator[None]:
    """From where the daemon is, to what it serves: with one there is something to drain."""
    argv = [*wire.enter, sys.executable, "-c", _CONNECT, str(daemon.plain)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"200\n"
            yield
        finally:
            process.kill()


def halted(daemon: Daemon) -> bool:
    """Whether every thread of it stands still."""
    stat = Path(f"/proc/{daemon.pid}/stat").read_bytes()
    return stat[stat.rindex(b")") + 2 :][:1] == b"T"


async def connected(daemon: Daemon) -> bool:
    return bool((await daemon.get("/status")).body["coordinator"]["connected"])


async def until_connected(daemon: Daemon) -> None:
    """The coordinator knows of a report before the agent knows that it does."""
    async with asyncio.timeout(40):
        while not await connected(daemon):
            await asyncio.sleep(0.05)


async def cut_in(
    case: Case, daemon: Daemon, coordinator: Coordinator, wire: Wire, tag: str
) -> None:
    """One update, cut and healed; returns when it has ended and all of it is told."""
    key = str(case).replace(" ", "-")
    wanted = {"tag": tag, "strategy": case.strategy}
    path = f"{_HELLO}/updates"
    (daemon.home / "orders").write_text(case.step)
    asking = asyncio.create_task(
        coordinator.insist(HOST, "POST", path, wanted, key=key, timeout_s=_LONG_S)
    )
    await coordinator.until(lambda: halted(daemon), 20)
    wire.cut(case.way)
    if case.victim == "coordinator":
        coordinator.kill()
    if case.victim == "agent":
        daemon.kill()
        await daemon.up()
    else:
        daemon.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
    await asyncio.sleep(CUT_S / 2)
    assert not await connected(daemon)  # its session is over by now
    if case.victim == "coordinator":
        coordinator.start()
    await asyncio.sleep(CUT_S / 2)
    wire.heal()
    first = await asking
    assert first.status == 202, first
    again = await coordinator.insist(HOST, "POST", path, wanted, key=key)
    assert again.body["id"] == first.body["id"]
    await coordinator.ended(HOST, tag, _LONG_S)


async def run_case(parts: tuple[Path, Path], case: Case, number: int) -> None:
    async with apart(parts, number) as (daemon, coordinator, wire):
        answer = await coordinator.insist(HOST, "PUT", _HELLO, body(daemon), key="deploy")
        assert answer.status == 202
        await coordinator.ended(HOST, "v1")
        with lasting_connection(daemon, wire):
            await cut_in(case, daemon, coordinator, wire, "v2")
        updates = (await daemon.get(f"{_HELLO}/updates")).body["updates"]
        assert [(one["tag"], one["status"], one["strategy"]) for one in updates] == [
            ("v2", "completed", case.strategy),
            ("v1", "completed", "fresh"),
        ]
        await same_end(daemon, coordinator)
        await until_connected(daemon)
        assert await discrepancies(daemon) == []


async def run_all(parts: tuple[Path, Path], cases: Sequence[Case]) -> None:
    """So many at once; each that ends otherwise is named."""
    left: Iterator[Case] = iter(cases)
    wrong: list[str] = []

    async def take(number: int) -> None:
        for case in left:
            try:
                await run_case(parts, case, number)
            except Exception as error:
                wrong.append(f"{case}: {error!r}")
            print("ended:", case)

    await asyncio.gather(*(take(number) for number in range(AT_ONCE)))
    assert not wrong, "\n".join(wrong)


@TAKES_LONG
async def test_a_cut_in_any_step_either_way_and_whoever_is_killed_the_end_is_the_same(
    parts: tuple[Path, Path],
) -> None:
    await run_all(parts, EVERY if WHOLE else SAMPLE)


async def test_the_agent_is_called_back_where_it_is_seen_to_be(parts: tuple[Path, Path]) -> None:
    async with apart(parts) as (_, coordinator, wire):
        report = coordinator.ledger.report(HOST)
        assert report is not None
        assert report["host"]["rpc_url"].startswith(f"https://{wire.theirs}:")


async def test_a_cut_that_outlives_the_session_is_seen_and_healed(
    parts: tuple[Path, Path],
) -> None:
    async with apart(parts) as (daemon, coordinator, wire):
        coordinator.ledger.set("session_ttl_s", 1)
        await asyncio.sleep(1.2)
        wire.cut("both")
        async with asyncio.timeout(20):
            while await connected(daemon):
                await asyncio.sleep(0.1)
        for verb in ("drain", "undrain"):
            assert (await daemon.send("POST", f"/v1/host/{verb}")).status == 200
        wire.heal()
        await same_end(daemon, coordinator)
        await until_connected(daemon)
