"""The real daemon asks real guests, whose shim answers by itself what the public one does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon
from tests.fakes.guest_releases import config_of, guest_image, make_releases

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

HOST = "app.example"
LISTED = b'"paths": [\n   "/v1/models",\n   "/v1/*"\n  ]'
CONFIGS = {
    "minds": config_of({"GUEST_HEALTH_HOST": HOST}),
    # containers without a health check run, and nothing answers behind the shim
    "dead": config_of({"GUEST_NEVER_HEALTHY": "1"}, checked=(), start_period="1s").replace(
        b'"paths": [\n   "/*",\n   "/health"\n  ]', LISTED
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    assert LISTED in CONFIGS["dead"]
    source: Path = tmp_path_factory.mktemp("releases")
    make_releases(source, CONFIGS, guest_image())
    async with running(source) as daemon:
        yield daemon


async def test_a_guest_that_minds_its_host_is_asked_by_the_domain(daemon: Daemon) -> None:
    assert (await daemon.deploy(tag="minds", domain=HOST)).status == 202
    update = await daemon.over()
    assert update["status"] == "completed", update["error"]


async def test_a_guest_whose_containers_run_before_a_dead_workload_is_not_ready(
    daemon: Daemon,
) -> None:
    """The shim answers 404 at the root, which is not the workload's answer."""
    assert (await daemon.update(tag="dead")).status == 202
    update = await daemon.over()
    assert (update["status"], update["step"]) == ("failed", "verify")
    assert update["error"]["probe"] == "https /v1/models", update["error"]
    assert "HTTP 50" in update["error"]["detail"]
    seen = await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert seen is not None
    assert seen["tag"] == "minds"
