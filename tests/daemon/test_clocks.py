"""The clocks of a running daemon are moved: nothing is over too early, and nothing hangs."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from simulator.moved_clocks import MovedClocks
from tests.daemon.bad_days import OTHER, serving
from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

HOUR_S = 3600
SOAK_S, DRAIN_S = 2.0, 4.0
LEASE = {"demand": {"memory_mib": 256, "vcpus": 1}}


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> MovedClocks:
    return MovedClocks(tmp_path_factory.mktemp("clocks"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(
    tmp_path_factory: pytest.TempPathFactory, clocks: MovedClocks
) -> AsyncIterator[Daemon]:
    """One for all, which serves some version."""
    place = tmp_path_factory.mktemp("fake")
    source = fake_releases(place, {"v1": config_of(), "v2": config_of()})
    times = {"dwell_s": 0.05, "soak_s": SOAK_S, "drain_s": DRAIN_S, "stop_grace_s": 1}
    options = settings(install(place), update=times)
    async with running(source, settings=options, environment=clocks.environment) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        await daemon.over()
        yield daemon


async def update_to_the_other(daemon: Daemon) -> str:
    """Begun, and in its soak."""
    other = OTHER[await serving(daemon) or ""]
    assert (await daemon.update(tag=other)).status == 202
    await daemon.step("soak")
    return other


async def lease(daemon: Daemon, ttl_s: int) -> str:
    answer = await daemon.send("POST", "/v1/leases", LEASE | {"ttl_s": ttl_s})
    assert answer.status == 201, answer
    return f"/v1/leases/{answer.body['id']}"


def moments(update: dict[str, Any]) -> list[dt.datetime]:
    names = ("created_at", "started_at", "ready_at", "switched_at", "finished_at")
    return [dt.datetime.fromisoformat(update[name]) for name in names if update[name]]


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_a_wall_clock_that_is_set_changes_neither_soak_nor_drain_nor_leases(
    daemon: Daemon, clocks: MovedClocks, step_s: int
) -> None:
    promised = await lease(daemon, 600)
    of_old, open_to_old = await asyncio.open_connection("127.0.0.1", daemon.plain)
    await update_to_the_other(daemon)
    began = time.monotonic()
    clocks.set_wall(step_s)
    await daemon.step("drain")
    assert time.monotonic() - began > SOAK_S - 1  # the step was noticed a moment late
    clocks.set_wall(-step_s / 2)
    update = await daemon.over(timeout_s=30)
    assert update["status"] == "completed", update["error"]
    assert await of_old.read() == b""  # at the drain's end: nothing was under way
    assert update["reset_connections"] == 0
    told = moments(update)
    assert told == sorted(told), "nothing ends before it began"
    assert told[-1] - told[0] < dt.timedelta(seconds=60)
    open_to_old.close()
    assert (await daemon.get(promised)).status == 200
    assert (await daemon.get("/healthz")).status == 200
    assert (await daemon.cli("events", "--verify"))[0] == 0
    assert await discrepancies(daemon) == []


async def test_after_a_suspension_what_is_over_is_over_and_all_else_is_looked_at_anew(
    daemon: Daemon, clocks: MovedClocks
) -> None:
    """The timers of the event loop have slept with the host."""
    daemon.stop()
    daemon.configure(update={"soak_s": 1800, "drain_s": 1800})
    await daemon.up()
    expiring, promised = await lease(daemon, 1800), await lease(daemon, 3 * HOUR_S)
    other = await update_to_the_other(daemon)
    clocks.suspend(HOUR_S)
    assert (await daemon.get("/healthz")).status == 200, "no loop is late for having slept"
    update = await daemon.over(timeout_s=30)
    assert update["status"] == "completed", update["error"]
    assert (await daemon.get(expiring)).status == 410
    assert (await daemon.get(promised)).status == 200
    assert await serving(daemon) == other
    assert "the host was suspended" in daemon.log.read_text()
    assert await discrepancies(daemon) == []
