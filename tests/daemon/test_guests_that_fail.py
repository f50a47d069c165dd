"""A guest hangs, resets or gets sick: while it boots, once it is Ready, after the switch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

CONFIGS = {
    "v1": config_of(),
    "hangs": config_of({"GUEST_FREEZE_AFTER_S": "0"}, start_period="500ms"),
    "resets": config_of({"GUEST_RESET_AFTER_S": "1", "GUEST_SLOW_STAGE": "models:30"}),
    "sickens": config_of({"GUEST_SICK_AFTER_S": "4"}),
    "freezes": config_of({"GUEST_FREEZE_AFTER_S": "4"}),
}
UPDATE = {"dwell_s": 0.2, "soak_s": 0.5, "drain_s": 1, "stop_grace_s": 1, "boot_deadline_s": 2}
PROBES = {"interval_s": 0.1, "timeout_s": 0.5, "success_threshold": 1, "failure_threshold": 2}
_HELLO = "/v1/deployments/hello"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest_asyncio.fixture(loop_scope="module", params=[{}])
async def daemon(
    parts: tuple[Path, Path], request: pytest.FixtureRequest
) -> AsyncIterator[Daemon]:
    """With v1 deployed; the parameter changes its times."""
    program, source = parts
    given = settings(program, update=UPDATE | request.param, probes=PROBES)
    async with running(source, settings=given) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


def times(**update: float) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("daemon", [update], indirect=True)


async def serving(daemon: Daemon) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return str(json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["version"])
    finally:
        writer.close()


async def failed(daemon: Daemon) -> dict[str, Any]:
    """The update, when it is over; v1 serves as if nothing had been."""
    update = await daemon.over()
    assert update["status"] == "failed"
    await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert await serving(daemon) == "v1"
    assert await discrepancies(daemon) == []
    return update


async def test_a_guest_that_never_answers_fails_in_its_boot(daemon: Daemon) -> None:
    assert (await daemon.update(tag="hangs")).status == 202
    update = await failed(daemon)
    assert (update["step"], update["ready_at"]) == ("boot", None)
    assert "did not answer" in update["error"]["detail"]


async def test_a_guest_that_resets_itself_fails_in_its_boot(daemon: Daemon) -> None:
    """Its measured launch is over with that: it is never let run on."""
    assert (await daemon.update(tag="resets")).status == 202
    update = await failed(daemon)
    assert (update["step"], update["error"]["code"]) == ("boot", "guest_reset")


@pytest.mark.parametrize("tag", ["sickens", "freezes"])
async def test_a_guest_that_gets_sick_while_it_waits_for_accept_fails(
    daemon: Daemon, tag: str
) -> None:
    assert (await daemon.update(tag=tag, staging=True)).status == 202
    await daemon.step("accept")
    update = await failed(daemon)
    assert update["step"] == "accept"
    assert update["ready_at"] is not None
    answer = await daemon.send("POST", f"{_HELLO}/updates/current/accept")
    assert (answer.status, answer.code) == (409, "no_update")


@times(soak_s=30, drain_s=30)
@pytest.mark.parametrize("tag", ["sickens", "freezes"])
async def test_a_guest_that_gets_sick_after_the_switch_gives_the_traffic_back(
    daemon: Daemon, tag: str
) -> None:
    assert (await daemon.update(tag=tag)).status == 202
    await daemon.step("soak")
    assert await serving(daemon) == tag
    update = await failed(daemon)
    assert (update["step"], update["error"]["step"]) == ("revert", "revert")
    assert update["switched_at"] is not None


@times(drain_s=8)
async def test_a_guest_that_gets_sick_while_the_old_one_drains_is_degraded_and_stays(
    daemon: Daemon,
) -> None:
    """The time to take the traffic back is over; a person is told."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    assert (await daemon.update(tag="sickens")).status == 202
    await daemon.step("drain")
    update = await daemon.over()
    assert (update["status"], update["reset_connections"]) == ("completed", 1)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    seen = await daemon.until(lambda d: d is not None and d["status"] == "degraded")
    assert seen is not None
    assert (seen["tag"], seen["enclaves"][0]["healthy"]) == ("sickens", False)
    assert (await daemon.send("POST", f"{_HELLO}/rollback", {"to": "v1"})).status == 202
    assert (await daemon.over())["status"] == "completed"
    assert await serving(daemon) == "v1"
    assert await discrepancies(daemon) == []
