"""The store's file is damaged, at rest or under the running daemon: nothing that serves notices.

What was between the last backup and the damage is lost, and no more than that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scripts.story.load import Load, Tally
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies, vms_in
from tests.fakes.store_damage import DAMAGES, carry_log_over, digest, zero_header
from tests.fakes.warm_start import WARM

pytestmark = [pytest.mark.slow]

CONFIGS = {"v1": config_of(), "v2": config_of()}
NEVER_S = 3600.0
_HELLO = "/v1/deployments/hello"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@asynccontextmanager
async def daemon_of(parts: tuple[Path, Path], backup_interval_s: float) -> AsyncIterator[Daemon]:
    program, source = parts
    store = {"backup_interval_s": backup_interval_s}
    daemon = Daemon(place(), source, settings=settings(program, store=store), **WARM)
    try:
        await daemon.up()
        yield daemon
    finally:
        await daemon.leave()


@asynccontextmanager
async def requests(daemon: Daemon) -> AsyncIterator[Tally]:
    """Sent all the while; none may fail."""
    load = Load(daemon.https, daemon.plain, per_second=15)
    load.start()
    tally = load.tally
    try:
        yield tally
    finally:
        await load.stop()
    print(f"{tally.sent} requests, {tally.lost} lost, answered by {dict(tally.versions)}")
    assert tally.sent > 0
    assert tally.lost == 0, tally.failures


async def deployed(daemon: Daemon, tag: str = "v1") -> None:
    assert (await daemon.deploy(tag=tag)).status == 202
    assert (await daemon.over())["status"] == "completed"


async def until_damaged(daemon: Daemon) -> float:
    """Seconds until it says that it is not ready because of its store."""
    begin = time.monotonic()
    while time.monotonic() - begin < 30:
        try:
            answer = await daemon.get("/readyz")
        except (aiohttp.ClientError, OSError):
            answer = None
        if answer is not None and answer.status == 503:
            (reason,) = answer.body["reasons"]
            if reason.startswith("store_damaged: "):
                return time.monotonic() - begin
        await asyncio.sleep(0.02)
    raise AssertionError(f"the damage is not told:\n{daemon.log_tail()}")


async def refuses_and_serves(daemon: Daemon) -> None:
    """Every change is refused with the mend; what only shows goes on."""
    requests: list[tuple[str, str, Any]] = [
        ("POST", f"{_HELLO}/updates", {"tag": "v2"}),
        ("PUT", "/v1/deployments/new", {"tag": "v1", "repo": "hello", "listen": "127.0.0.1:9"}),
        ("POST", f"{_HELLO}/stop", None),
        ("DELETE", _HELLO, None),
        ("PUT", f"{_HELLO}/secrets", {"KEY": "value"}),
        ("POST", "/v1/host/drain", None),
    ]
    for method, path, body in requests:
        answer = await daemon.send(method, path, body, headers={"Idempotency-Key": path})
        assert (answer.status, answer.code) == (503, "store_damaged"), (path, answer)
        assert "enclave-agent restore-store" in answer.body["detail"]
    for path in ("/healthz", "/metrics", "/status"):
        assert (await daemon.get(path)).status == 200, path
    problems = {p["code"]: p for p in (await daemon.get("/status")).body["problems"]}
    assert "enclave-agent restore-store" in problems["store_damaged"]["mend"]


async def restore(daemon: Daemon) -> str:
    code, said, complaint = await daemon.cli("--config", str(daemon.file), "restore-store")
    assert code == 0, complaint
    return said


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_store_stops_nothing_and_is_restored_by_one_command(
    parts: tuple[Path, Path], damage: Callable[[Path], None]
) -> None:
    async with daemon_of(parts, backup_interval_s=0.2) as daemon:
        file = daemon.state / "agent.db"
        await deployed(daemon)
        running = vms_in(daemon)
        async with requests(daemon):
            await asyncio.sleep(0.5)  # the backup knows all of it
            carry_log_over(file)
            damage(file)
            noticed_s = await until_damaged(daemon)
            await refuses_and_serves(daemon)
            code, _, complaint = await daemon.cli("--config", str(daemon.file), "restore-store")
            assert (code, "already runs here" in complaint) == (1, True), complaint
            before = digest(file)
            daemon.stop()
            assert digest(file) == before
            await restore(daemon)
            (kept,) = daemon.state.glob("agent.db.damaged-*Z")
            assert digest(kept) == before
            await daemon.up()
            assert vms_in(daemon) == running
            assert (await daemon.update(tag="v2")).status == 202
            assert (await daemon.over())["status"] == "completed"

            daemon.stop()
            damage(file)
            before = digest(file)
            daemon.start()
            await until_damaged(daemon)
            await refuses_and_serves(daemon)
            daemon.kill()
            assert digest(file) == before
            await restore(daemon)
            await daemon.up()
            assert (await daemon.send("POST", "/v1/host/drain")).status == 200
        assert await discrepancies(daemon) == []
        events = (await daemon.get("/v1/events?limit=1000")).body["events"]
        sequences = [event["sequence"] for event in events]
        assert sum(later - one > 1_000 for one, later in pairwise(sequences)) == 2
        code, _, said = await daemon.cli("events", "--verify")
        assert (code, said.count("was lost")) == (0, 2), said
        print(f"noticed after {noticed_s:.2f} s while running")


async def test_an_update_that_the_backup_does_not_know_goes_back_without_losing_a_request(
    parts: tuple[Path, Path],
) -> None:
    async with daemon_of(parts, NEVER_S) as daemon:
        await deployed(daemon)
        daemon.stop()  # which makes a backup
        await daemon.up()
        async with requests(daemon) as tally:
            assert (await daemon.update(tag="v2")).status == 202
            assert (await daemon.over())["status"] == "completed"
            serving = vms_in(daemon)
            daemon.kill()
            carry_log_over(daemon.state / "agent.db")
            zero_header(daemon.state / "agent.db")
            await restore(daemon)
            await daemon.up()
            assert serving.items() <= vms_in(daemon).items()
            seen = await daemon.until(lambda d: d is not None and d["status"] == "running")
            assert seen is not None
            assert seen["tag"] == "v1"
            await settled(daemon)
        assert set(tally.versions) == {"v1", "v2"}
        assert serving.keys().isdisjoint(vms_in(daemon))
        assert await discrepancies(daemon) == []
        assert await told_of(daemon) == ["unrecorded", "gone"]


async def test_a_deployment_that_the_backup_does_not_know_serves_until_it_is_deployed_again(
    parts: tuple[Path, Path],
) -> None:
    async with daemon_of(parts, NEVER_S) as daemon:
        await asyncio.sleep(0.3)  # the backup of the start is empty
        await deployed(daemon)
        first = vms_in(daemon)
        async with requests(daemon) as tally:
            daemon.kill()
            carry_log_over(daemon.state / "agent.db")
            zero_header(daemon.state / "agent.db")
            await restore(daemon)
            await daemon.up()
            await until_told(daemon)
            daemon.kill()  # and all of it again
            await daemon.up()
            await until_told(daemon)
            assert vms_in(daemon) == first
            assert await daemon.deployment() is None
            await deployed(daemon, "v2")
            await settled(daemon)
        assert set(tally.versions) == {"v1", "v2"}
        assert await discrepancies(daemon) == []
        assert await told_of(daemon) == ["unrecorded", "unrecorded", "gone"]


async def test_what_a_restored_store_does_not_know_is_stopped_when_somebody_says_so(
    parts: tuple[Path, Path],
) -> None:
    async with daemon_of(parts, NEVER_S) as daemon:
        await asyncio.sleep(0.3)
        await deployed(daemon)
        daemon.kill()
        (daemon.state / "agent.db").unlink()
        await restore(daemon)
        words = ("--config", str(daemon.file), "restore-store", "--stop-unrecorded")
        assert (await daemon.cli(*words))[0] == 0
        await daemon.up()
        assert vms_in(daemon) == {}
        assert await discrepancies(daemon) == []


async def problems(daemon: Daemon) -> list[str]:
    return [one["code"] for one in (await daemon.get("/status")).body["problems"]]


async def until_told(daemon: Daemon) -> None:
    deadline = time.monotonic() + 10
    while "unrecorded_enclave" not in await problems(daemon):
        assert time.monotonic() < deadline, await problems(daemon)
        await asyncio.sleep(0.05)


async def settled(daemon: Daemon) -> None:
    """Until no VM is left that has no row."""
    deadline = time.monotonic() + 20
    while len(vms_in(daemon)) > 1 or "unrecorded_enclave" in await problems(daemon):
        assert time.monotonic() < deadline, await problems(daemon)
        await asyncio.sleep(0.05)


async def told_of(daemon: Daemon) -> list[str]:
    """What events say of the VM without a row."""
    events = (await daemon.get("/v1/events?limit=1000")).body["events"]
    return [e["to"] for e in events if e["reason"] and "restored store" in e["reason"]]
