"""The agent is killed -9 in every step of an update: clients of the data plane notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from scripts.story.load import Load
from tests.daemon.bad_days import HELLO, OTHER, Stage, until
from tests.fakes import halting_daemon
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import Guests, fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies
from tests.fakes.warm_start import warm_start

pytestmark = pytest.mark.slow

STEPS = ("prepare", "launch", "boot", "verify", "accept", "switch", "soak", "drain", "retire")
UPDATE = {"dwell_s": 0.05, "soak_s": 0.05, "drain_s": 600, "stop_grace_s": 1}
UNSEEN = 10  # requests that are sent and answered while nobody is there
PER_SECOND = 40


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """With v1 deployed."""
    program = install(tmp_path)
    source = fake_releases(tmp_path, {tag: config_of() for tag in OTHER})
    given = settings(program, update=UPDATE)
    daemon = Daemon(place(), source, settings=given, launch=warm_start(halting_daemon.main))
    daemon.command = ("--orders", str(daemon.home / "orders"))
    try:
        await daemon.up()
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield Stage(daemon, Guests(program))
    finally:
        await daemon.leave()


class Kept:
    """One connection that is used all the time: it stays with the old version."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def version(self) -> str:
        self._writer.write(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        return str(json.loads(await self._reader.readexactly(length))["version"])

    def close(self) -> None:
        self._writer.close()


async def unanswered(request: Coroutine[Any, Any, Any]) -> None:
    """The daemon may die before it answers."""
    with contextlib.suppress(aiohttp.ClientError, OSError):
        await request


async def die(stage: Stage, load: Load) -> None:
    """Once the daemon stands still: kill it, and see requests go on."""
    await until(lambda: stage.halted, "the daemon comes to the step")
    stage.daemon.kill()
    tally = load.tally
    begun = tally.sent + UNSEEN
    await until(lambda: tally.versions.total() + tally.lost >= begun, "requests are answered")


async def test_clients_lose_no_request_while_the_agent_is_dead_in_any_step(
    stage: Stage, figures: list[str]
) -> None:
    daemon = stage.daemon
    kept = Kept(*await asyncio.open_connection("127.0.0.1", daemon.plain))
    load = Load(daemon.https, daemon.plain, PER_SECOND)
    load.start()
    stage.halt_at(STEPS[0])
    asked = asyncio.create_task(unanswered(daemon.update(tag="v2", staging=True)))
    for step, following in itertools.pairwise((*STEPS, "")):
        await die(stage, load)
        await asked
        if step != "retire":
            assert await kept.version() == "v1"
        if step == "drain":
            kept.close()
        if step == "accept":
            await daemon.up()
            stage.halt_at(following)
            accept = daemon.send("POST", f"{HELLO}/updates/current/accept")
            asked = asyncio.create_task(unanswered(accept))
        elif following:
            stage.halt_at(following)
            daemon.start()
    await daemon.up()
    update = await daemon.over()
    await cancelled_teardown(stage, load)
    tally = await load.stop()
    assert (update["status"], update["reset_connections"]) == ("completed", 0), update["error"]
    figures.append(
        f"the agent killed once in each of {len(STEPS) + 1} steps of blue_green under "
        f"{tally.sent} requests: {tally.failed} failed, {tally.reset} reset"
    )
    assert tally.failures == {}
    assert set(tally.versions) == {"v1", "v2"}
    assert await discrepancies(daemon) == []


async def cancelled_teardown(stage: Stage, load: Load) -> None:
    """One more update, which is killed as its new version is being destroyed."""
    stage.guests.order("v1", "booting")
    assert (await stage.daemon.update(tag="v1")).status == 202
    await stage.daemon.step("boot")
    stage.halt_at("teardown")
    cancel = stage.daemon.send("POST", f"{HELLO}/updates/current/cancel")
    asked = asyncio.create_task(unanswered(cancel))
    await die(stage, load)
    await asked
    await stage.daemon.up()
    assert (await stage.daemon.over())["status"] == "cancelled"
