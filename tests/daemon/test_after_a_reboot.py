"""The host was rebooted: no VM, no data plane, no run directory, no secret; the store is there."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.daemon.parts import secrets_dir
from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon, execute, kill_all, processes_in
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow]

CONFIGS = {
    "v1": config_of(),
    "v2": config_of(),
    "slow": config_of({"GUEST_SLOW_STAGE": "models:5"}),
    "sealed-slow": config_of({"GUEST_SLOW_STAGE": "models:5"}, secrets=("API_KEY",)),
    "sealed": config_of(secrets=("API_KEY",)),
}


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    source = fake_releases(tmp_path, CONFIGS)
    async with running(source, settings=settings(install(tmp_path))) as daemon:
        yield daemon


def reboot(daemon: Daemon, *, new_boot_id: bool) -> None:
    """What memory held is gone. A mount namespace of its own shows the daemon another boot id."""
    daemon.kill()
    kill_all(processes_in(daemon.home))
    shutil.rmtree(daemon.run)
    shutil.rmtree(secrets_dir(daemon.typed_config()), ignore_errors=True)
    if new_boot_id:
        boot_id = daemon.home / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        script = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
        inner = (sys.executable, "-m", "agent")
        daemon.launch = execute
        daemon.command = ("unshare", "--mount", "sh", "-c", script, "sh", *inner)
    daemon.start()


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root, id="boot-id"), False])
def new_boot_id(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def serving(port: int) -> dict[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        said: dict[str, str] = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        return said
    finally:
        writer.close()


async def runs(daemon: Daemon) -> None:
    await daemon.until(lambda d: d is not None and d["status"] == "running")


async def test_what_ran_runs_again(daemon: Daemon, new_boot_id: bool) -> None:
    assert (await daemon.deploy(tag="v1")).status == 202
    await daemon.over()
    reboot(daemon, new_boot_id=new_boot_id)
    await daemon.ready()
    await runs(daemon)
    assert (await serving(daemon.plain))["version"] == "v1"
    assert await discrepancies(daemon) == []
    assert (await daemon.update(tag="v2")).status == 202
    assert (await daemon.over())["status"] == "completed"


async def test_a_deployment_waits_for_its_secrets_until_they_are_given_again(
    daemon: Daemon, new_boot_id: bool
) -> None:
    assert (await daemon.deploy(tag="sealed", secrets={"API_KEY": "value"})).status == 202
    await daemon.over()
    reboot(daemon, new_boot_id=new_boot_id)
    await daemon.ready()
    seen = await daemon.until(lambda d: d is not None and d["status"] == "waiting_for_secrets")
    # refused; or reset, while the proxy still has the route that the reboot made void
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        await serving(daemon.plain)
    answer = await daemon.send("PUT", "/v1/deployments/hello/secrets", {"API_KEY": "value"})
    assert (answer.status, answer.body["stale_secrets"]) == (200, [])
    await runs(daemon)
    assert (await serving(daemon.plain))["version"] == "sealed"
    assert seen is not None
    assert seen["error"] is None
    assert await discrepancies(daemon) == []


async def test_a_stopped_deployment_stays_stopped(daemon: Daemon, new_boot_id: bool) -> None:
    assert (await daemon.deploy(tag="v1")).status == 202
    await daemon.over()
    assert (await daemon.send("POST", "/v1/deployments/hello/stop")).status == 202
    await daemon.until(lambda d: d is not None and not d["enclaves"])
    reboot(daemon, new_boot_id=new_boot_id)
    await daemon.ready()
    seen = await daemon.deployment()
    assert seen is not None
    assert (seen["status"], seen["enclaves"]) == ("stopped", [])
    assert await discrepancies(daemon) == []


@pytest.mark.parametrize("strategy", ["blue_green", "stop_then_start"])
async def test_an_update_under_way_goes_on_or_says_why_not(
    daemon: Daemon, new_boot_id: bool, strategy: str
) -> None:
    """By the boot id it is known that its VM was lost to a reboot, which is not its fault."""
    assert (await daemon.deploy(tag="v1")).status == 202
    await daemon.over()
    assert (await daemon.update(tag="slow", strategy=strategy)).status == 202
    await daemon.step("boot")
    reboot(daemon, new_boot_id=new_boot_id)
    await daemon.ready()
    update = await daemon.over()
    if new_boot_id:
        assert update["status"] == "completed", update["error"]
        await runs(daemon)
        assert (await serving(daemon.plain))["version"] == "slow"
    else:
        assert update["status"] == "failed"
        assert update["error"]["code"] == "vm_lost", update["error"]
        if strategy == "blue_green":
            await runs(daemon)
            assert (await serving(daemon.plain))["version"] == "v1"
        else:
            seen = await daemon.deployment()
            assert seen is not None
            assert seen["status"] == "failed"
    assert await discrepancies(daemon) == []


@pytest.mark.root
async def test_a_first_deployment_under_way_waits_for_its_secrets_and_goes_on(
    daemon: Daemon,
) -> None:
    assert (await daemon.deploy(tag="sealed-slow", secrets={"API_KEY": "value"})).status == 202
    await daemon.step("boot")
    reboot(daemon, new_boot_id=True)
    await daemon.ready()
    await daemon.until(lambda d: d is not None and d["status"] == "waiting_for_secrets")
    answer = await daemon.send("PUT", "/v1/deployments/hello/secrets", {"API_KEY": "value"})
    assert answer.status == 200
    update = await daemon.over()
    assert update["status"] == "completed", update["error"]
    assert (await serving(daemon.plain))["version"] == "sealed-slow"
    assert await discrepancies(daemon) == []
