"""The whole daemon and versions whose containers run, but whose workload does not serve."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import Guests, fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

HOST = "app.example"
MINDS = {"GUEST_HEALTH_HOST": HOST}


def listing(paths: str, behaviour: dict[str, str] | None = None) -> bytes:
    """A config whose shim lists these; without a health path among them."""
    config = config_of(behaviour, start_period="500ms")
    return re.sub(rb'"paths": \[[^]]*\]', b'"paths": ' + paths.encode(), config)


CONFIGS = {
    **dict.fromkeys(("v1", "v2"), config_of(start_period="500ms")),
    "dead": config_of({"GUEST_DEAD_PORT": "1"}, start_period="500ms"),
    "dead-api": listing('["/v1/models", "/v1/*"]', {"GUEST_DEAD_PORT": "1"}),
    "minds": config_of(MINDS, start_period="500ms"),
    "closed": listing('["/v1/*"]'),
}
UPDATE = {"dwell_s": 0.2, "soak_s": 2, "drain_s": 1, "stop_grace_s": 1}
PROBES = {"interval_s": 0.1, "timeout_s": 1, "success_threshold": 1, "failure_threshold": 2}
_HELLO = "/v1/deployments/hello"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest_asyncio.fixture(loop_scope="module")
async def daemon(parts: tuple[Path, Path]) -> AsyncIterator[Daemon]:
    program, source = parts
    given = settings(program, update=UPDATE, probes=PROBES)
    async with running(source, settings=given) as daemon:
        yield daemon


async def serves(daemon: Daemon, tag: str) -> None:
    """The deployment runs this version, and nothing of another is left."""
    seen = await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert seen is not None
    assert seen["tag"] == tag
    assert await discrepancies(daemon) == []


async def completed(daemon: Daemon) -> dict[str, Any]:
    update = await daemon.over()
    assert update["status"] == "completed", update["error"]
    return update


async def test_a_version_whose_port_is_dead_never_becomes_ready(daemon: Daemon) -> None:
    """Also where its shim lists no path for the purpose, and answers 404 at the root itself."""
    assert (await daemon.deploy(tag="v1")).status == 202
    await completed(daemon)
    for tag, path in (("dead", "/health"), ("dead-api", "/v1/models")):
        assert (await daemon.update(tag=tag)).status == 202
        update = await daemon.over()
        assert (update["status"], update["step"]) == ("failed", "verify")
        assert (update["ready_at"], update["switched_at"]) == (None, None)
        assert update["error"]["probe"] == f"https {path}"
        assert "HTTP 502" in update["error"]["detail"]
        await serves(daemon, "v1")


async def test_a_port_that_dies_after_the_switch_takes_the_traffic_back(
    daemon: Daemon, parts: tuple[Path, Path]
) -> None:
    guests = Guests(parts[0])
    assert (await daemon.deploy(tag="v1")).status == 202
    await completed(daemon)
    assert (await daemon.update(tag="v2")).status == 202
    await daemon.step("soak")
    guests.order("v2", "dead")
    update = await daemon.over()
    guests.release("v2")
    assert (update["status"], update["step"]) == ("failed", "revert")
    await serves(daemon, "v1")


async def test_a_workload_that_minds_its_host_is_ready_by_domain_or_by_the_host_named(
    daemon: Daemon,
) -> None:
    assert (await daemon.deploy(tag="minds")).status == 202
    update = await daemon.over()
    assert update["status"] == "failed"
    assert "--probe-host" in update["error"]["detail"]
    assert (await daemon.update(probes={"host": HOST})).status == 202
    await completed(daemon)
    shown = await daemon.deployment()
    assert shown is not None
    assert shown["probes"]["host"] == HOST
    assert (await daemon.update(probes=None)).status == 202
    assert (await daemon.over())["status"] == "failed"


async def test_a_deployment_is_asked_by_its_domain(daemon: Daemon) -> None:
    assert (await daemon.deploy(tag="minds", domain=HOST)).status == 202
    await completed(daemon)


async def test_where_no_path_can_be_asked_plan_update_and_status_say_so(daemon: Daemon) -> None:
    assert (await daemon.deploy(tag="v1")).status == 202
    await completed(daemon)
    plan = await daemon.send("POST", "/v1/plan", {"deployment": "hello", "tag": "closed"})
    (told,) = plan.body["warnings"]
    assert "its containers and its published ports (8080) decide" in told
    refused = await daemon.update(tag="closed", probes={"path": "/ready"})
    assert (refused.status, refused.body["field"]) == (400, "probes.path")
    assert (await daemon.update(tag="closed")).status == 202
    assert (await completed(daemon))["warnings"] == [told]
    shown = await daemon.deployment()
    assert shown is not None
    assert (shown["warnings"], shown["probes"]["asked_path"]) == ([told], None)
    assert (await daemon.update(tag="closed", probes={"path": "/v1/up"})).status == 202
    assert (await completed(daemon))["warnings"] == []
