"""A VM dies by itself in an update: what is told of it, and what may be asked for besides.

How an update ends in which a VM dies: see `test_bad_days`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
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
    "v2": config_of(),
    "slow": config_of({"GUEST_SLOW_STAGE": "models:2"}),
}
UPDATE = {"dwell_s": 0.2, "soak_s": 1.5, "drain_s": 1, "stop_grace_s": 1}
_HELLO = "/v1/deployments/hello"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest_asyncio.fixture(loop_scope="module")
async def daemon(parts: tuple[Path, Path]) -> AsyncIterator[Daemon]:
    """With v1 deployed."""
    program, source = parts
    async with running(source, settings=settings(program, update=UPDATE)) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


async def serving(daemon: Daemon) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return str(json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["version"])
    finally:
        writer.close()


def vm_of(seen: dict[str, Any], revision: int) -> dict[str, Any]:
    return next(one for one in seen["enclaves"] if one["revision"] == revision)


async def kill(daemon: Daemon, which: str) -> None:
    """The VM of the running update's old or new version."""
    seen = await daemon.deployment()
    assert seen is not None
    revision = seen["update"]["from_revision" if which == "old" else "revision"]
    os.kill(vm_of(seen, revision)["pid"], signal.SIGKILL)


async def problems_of(daemon: Daemon) -> list[str]:
    return [problem["code"] for problem in (await daemon.get("/status")).body["problems"]]


async def settled(daemon: Daemon) -> dict[str, Any]:
    """The update is over, and the deployment runs."""
    update = await daemon.over()
    await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert await discrepancies(daemon) == []
    return update


async def test_an_old_version_that_dies_before_the_switch_is_a_problem_until_another_serves(
    daemon: Daemon,
) -> None:
    assert (await daemon.update(tag="slow")).status == 202
    await daemon.step("boot")
    await kill(daemon, "old")
    while not (problems := await problems_of(daemon)):
        await asyncio.sleep(0.02)
    assert problems == ["not_serving"]
    update = await settled(daemon)
    assert (update["status"], await serving(daemon)) == ("completed", "slow"), update["error"]
    assert await problems_of(daemon) == []


async def test_without_revert_a_new_version_that_dies_in_its_soak_is_relaunched(
    daemon: Daemon,
) -> None:
    assert (await daemon.update(tag="v2", revert_after_switch=False)).status == 202
    await daemon.step("soak")
    await kill(daemon, "new")
    update = await settled(daemon)
    assert (update["status"], await serving(daemon)) == ("completed", "v2"), update["error"]


@pytest.mark.parametrize(("restart", "tag"), [(True, "v1"), (False, None)])
async def test_a_new_version_that_dies_after_the_old_was_stopped_fails_the_deployment(
    daemon: Daemon, restart: bool, tag: str | None
) -> None:
    """Or brings the old one back, if that was asked for."""
    options = {"strategy": "stop_then_start", "restart_old_on_failure": restart}
    assert (await daemon.update(tag="slow", **options)).status == 202
    await daemon.step("boot")
    await kill(daemon, "new")
    if tag is not None:
        await daemon.until(lambda d: d is not None and d["status"] == "running")
        await settled(daemon)
        assert await serving(daemon) == tag
        return
    update = await daemon.over()
    seen = await daemon.deployment()
    assert seen is not None
    assert (update["status"], seen["status"], seen["enclaves"]) == ("failed", "failed", [])
    assert seen["error"]["code"] == "qemu_exit"
    with pytest.raises(ConnectionRefusedError):
        await serving(daemon)
    assert await discrepancies(daemon) == []
    answer = await daemon.send("POST", f"{_HELLO}/rollback", {"to": "v1"})
    assert answer.status == 202, answer
    update = await settled(daemon)
    assert (update["status"], await serving(daemon)) == ("completed", "v1"), update["error"]


async def test_a_traffic_proxy_that_dies_is_started_again_and_serves(daemon: Daemon) -> None:
    pids = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and f"{daemon.run}/traffic.sock" in (entry / "cmdline").read_text().split("\0")
    ]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    while True:
        try:
            assert await serving(daemon) == "v1"
            break
        except (ConnectionError, ValueError):
            await asyncio.sleep(0.02)
    while await discrepancies(daemon) != []:  # who started the proxy may not have ended yet
        await asyncio.sleep(0.1)
