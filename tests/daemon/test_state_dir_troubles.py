"""The state directory takes no writes, or no more files: said, nothing lost, on it goes after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.daemon.bad_days import serving
from tests.daemon.small_disk import Disk, deployed, on_a_small_disk, problems_of
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import fake_releases, install
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[Daemon, Disk]]:
    source = fake_releases(tmp_path, {"v1": config_of(), "v2": config_of({"OTHER": "1"})})
    options = {"store": {"backup_interval_s": 1}}
    async with on_a_small_disk(install(tmp_path), source, **options) as here:
        await deployed(here[0])
        yield here


async def update_fails(daemon: Daemon, code: str) -> None:
    """At once, or before it touched what serves."""
    answer = await daemon.update(tag="v2")
    if answer.status == 202:
        update = await daemon.over()
        assert (update["status"], update["error"]["code"]) == ("failed", code), update
    else:
        assert (answer.status, answer.code) == (503, code), answer
    assert (await daemon.get("/readyz")).status == 200
    assert await serving(daemon) == "v1"


async def all_is_well(daemon: Daemon) -> None:
    answer = await daemon.update(tag="v2")
    assert answer.status == 202, answer
    assert (await daemon.over())["status"] == "completed"
    assert await serving(daemon) == "v2"
    async with asyncio.timeout(30):
        while await problems_of(daemon):
            await asyncio.sleep(0.02)
    assert await discrepancies(daemon) == []


async def test_without_inodes_it_is_as_without_room(world: tuple[Daemon, Disk]) -> None:
    daemon, disk = world
    disk.use_up_inodes()
    await update_fails(daemon, "disk_full")
    daemon.kill()
    await daemon.up()  # and adopts
    await update_fails(daemon, "disk_full")
    disk.free()
    await all_is_well(daemon)


async def test_read_only_it_serves_on_says_so_and_a_new_start_ends_with_the_reason(
    world: tuple[Daemon, Disk],
) -> None:
    daemon, disk = world
    with disk.read_only():
        await update_fails(daemon, "disk_read_only")
        for verb in ("drain", "undrain"):  # the store's own file is open, and takes it
            assert (await daemon.send("POST", f"/v1/host/{verb}")).status == 200
        async with asyncio.timeout(30):
            while "backup_failed" not in await problems_of(daemon):
                await asyncio.sleep(0.02)
        daemon.kill()
        daemon.start()
        assert daemon.process is not None
        assert await asyncio.to_thread(daemon.process.wait, 60) == 1
        assert "disk_read_only" in daemon.log_tail()
        assert await serving(daemon) == "v1"
    await daemon.up()
    await all_is_well(daemon)
