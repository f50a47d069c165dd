"""The disk of the state directory is full: clear answers, nothing broken, and on it goes after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.daemon.bad_days import Stage, serving, until
from tests.daemon.small_disk import Disk, deployed, on_a_small_disk, problems_of
from tests.fakes import halting_daemon
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import Guests, fake_releases, install
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies
from tests.fakes.https_files import make_certificate, serve_https
from tests.fakes.release_parts import MIB
from tests.fakes.warm_start import warm_start

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIGS = {"v1": config_of(), "v2": config_of()}
HALTING = warm_start(halting_daemon.main)
_HELLO = "/v1/deployments/hello"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest_asyncio.fixture
async def world(parts: tuple[Path, Path]) -> AsyncIterator[tuple[Daemon, Disk]]:
    async with on_a_small_disk(*parts) as here:
        yield here


# What would begin an enclave is refused for want of room for it; all else finds no room to write.
REQUESTS: list[tuple[str, str, Any, int, str]] = [
    ("POST", f"{_HELLO}/updates", {"tag": "v2"}, 409, "disk_insufficient"),
    ("POST", f"{_HELLO}/updates", {"secrets": {"KEY": "value"}}, 503, "disk_full"),
    (
        *("PUT", "/v1/deployments/other"),
        {"tag": "v1", "repo": "hello", "listen": "127.0.0.1:9"},
        *(409, "disk_insufficient"),
    ),
    ("POST", f"{_HELLO}/rollback", {"to": 1}, 409, "disk_insufficient"),
    ("PUT", f"{_HELLO}/secrets", {"KEY": "value"}, 503, "disk_full"),
    ("POST", "/v1/host/drain", None, 503, "disk_full"),
    ("POST", f"{_HELLO}/stop", None, 503, "disk_full"),
    ("DELETE", _HELLO, None, 503, "disk_full"),
]


async def test_every_request_says_that_the_disk_is_full_and_changes_nothing(
    world: tuple[Daemon, Disk],
) -> None:
    daemon, disk = world
    await deployed(daemon)
    disk.fill()
    before = (await daemon.get("/status")).body["deployments"]
    for number, (method, path, body, status, code) in enumerate(REQUESTS):
        key = {"Idempotency-Key": f"key-{number}"}
        answer = await daemon.send(method, path, body, headers=key)
        assert (answer.status, answer.code) == (status, code), (path, answer)
        if status == 503:
            assert "no space left" in answer.body["detail"].lower(), answer.body
            assert answer.headers["Retry-After"]
    after = (await daemon.get("/status")).body["deployments"]
    assert [d["enclaves"][0]["id"] for d in after] == [d["enclaves"][0]["id"] for d in before]
    assert [d["update"] for d in after] == [d["update"] for d in before]
    assert (await daemon.get("/readyz")).status == 200
    assert await serving(daemon) == "v1"
    assert await discrepancies(daemon) == []

    disk.free()
    for number in (4, 5):
        method, path, body, _, _ = REQUESTS[number]
        key = {"Idempotency-Key": f"key-{number}"}
        assert (await daemon.send(method, path, body, headers=key)).status == 200
    assert (await daemon.send("POST", "/v1/host/undrain")).status == 200
    assert (await daemon.update(tag="v2")).status == 202
    assert (await daemon.over())["status"] == "completed"
    assert await serving(daemon) == "v2"
    assert await discrepancies(daemon) == []


@dataclass(frozen=True)
class End:
    """What serves while there is no room (None: it refuses), and how the update ends after it."""

    serves: str | None
    status: str = "completed"
    step: str | None = None


# Where the disk fills at the first moment of the step. The proxy keeps its routes on it too: a
# switch that it cannot take is taken back before anybody was sent anywhere.
STANDS, UNSWITCHED = End("v1"), End("v1", "failed", "revert")
DOWN = End(None)
ENDS = {
    "blue_green": {
        **dict.fromkeys(("prepare", "boot", "verify"), STANDS),
        "switch": UNSWITCHED,
        **dict.fromkeys(("soak", "retire"), End("v2")),
    },
    "stop_then_start": {
        **dict.fromkeys(("prepare", "stop_old"), STANDS),
        **dict.fromkeys(("launch", "verify", "switch"), DOWN),
        "soak": End("v2"),
    },
}
STOPPED_AT = [(strategy, step) for strategy, steps in ENDS.items() for step in steps]


@pytest.mark.parametrize(("strategy", "step"), STOPPED_AT)
async def test_an_update_that_the_disk_stops_in_a_step_stands_there_and_ends_as_it_should(
    parts: tuple[Path, Path], strategy: str, step: str
) -> None:
    end = ENDS[strategy][step]
    async with on_a_small_disk(*parts, launch=HALTING) as (daemon, disk):
        stage = Stage(daemon, Guests(parts[0]))
        await deployed(daemon)
        stage.halt_at(step)
        asked = asyncio.create_task(daemon.update(tag="v2", strategy=strategy))
        await until(lambda: stage.halted, "the daemon comes to the step")
        disk.fill()
        stage.go_on()
        assert (await asked).status == 202
        await stands(daemon)
        seen = await daemon.deployment()
        assert seen is not None
        assert (seen["update"]["step"], seen["update"]["finished_at"]) == (step, None)
        assert await serving(daemon) == end.serves

        disk.free()
        update = await daemon.over()
        assert update["status"] == end.status, update["error"]
        if end.status == "completed":
            assert await serving(daemon) == "v2"
        else:
            assert (update["step"], update["error"]["code"]) == (end.step, "traffic_unavailable")
            assert await serving(daemon) == end.serves
        async with asyncio.timeout(30):
            while await problems_of(daemon):
                await asyncio.sleep(0.02)
        assert await discrepancies(daemon) == []


async def stands(daemon: Daemon) -> None:
    """Until the daemon says that the disk keeps it, or that it keeps the data plane."""
    async with asyncio.timeout(30):
        while not {"disk_full", "traffic_unavailable"} & await problems_of(daemon):
            await asyncio.sleep(0.02)


async def test_an_agent_that_starts_without_room_adopts_all_the_same(
    world: tuple[Daemon, Disk],
) -> None:
    daemon, disk = world
    await deployed(daemon)
    daemon.kill()
    disk.fill()
    await daemon.up()
    assert await serving(daemon) == "v1"
    seen = await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert seen is not None
    answer = await daemon.send("POST", f"{_HELLO}/stop")
    assert (answer.status, answer.code) == (503, "disk_full")
    disk.free()
    assert (await daemon.update(tag="v2")).status == 202
    assert (await daemon.over())["status"] == "completed"
    assert await discrepancies(daemon) == []


async def test_a_first_start_without_room_ends_and_says_why(world: tuple[Daemon, Disk]) -> None:
    daemon, disk = world
    disk.fill()
    daemon.start()
    assert daemon.process is not None
    assert await asyncio.to_thread(daemon.process.wait, 30) == 1
    assert "disk_full" in daemon.log_tail()
    disk.free()
    await deployed(daemon)
    assert await discrepancies(daemon) == []


async def test_artifacts_that_do_not_fit_fail_the_update_and_leave_no_part_of_them(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    program, source = parts
    certificate = make_certificate(tmp_path)
    async with serve_https(source, tmp_path, certificate=certificate) as files:
        trust = {"SSL_CERT_FILE": str(certificate)}
        releases = {"source": files.url}
        big = {path.name for path in source.rglob("*") if path.stat().st_size >= 3 * MIB}
        async with on_a_small_disk(
            program, Path(files.url), releases=releases, environment=trust
        ) as (daemon, disk):
            await daemon.up()
            disk.fill(leave_kib=18 * 1024)  # an enclave has room, 16 MiB are promised to it
            files.holds.update(dict.fromkeys(big, MIB))
            answer = await daemon.deploy(tag="v1")
            assert answer.status == 202, answer
            await files.held.wait()  # the artifact is under way; its rest will find no room
            disk.fill(leave_kib=1024)
            files.go_on.set()
            update = await daemon.over()
            assert update["status"] == "failed"
            assert update["error"]["code"] == "disk_full"
            disk.free()
            partial = daemon.state / "cache" / "partial"
            assert sum(path.stat().st_size for path in partial.rglob("*")) < 2 * MIB
            answer = await daemon.send("POST", f"{_HELLO}/updates/current/retry")
            assert answer.status == 202, answer
            assert (await daemon.over())["status"] == "completed"
            assert await serving(daemon) == "v1"
            assert await discrepancies(daemon) == []
