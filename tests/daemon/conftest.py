"""What the tests of the whole daemon share: releases, and daemons that leave nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon_process import Daemon, place
from tests.fakes.guest_releases import config_of, guest_image, make_releases
from tests.fakes.warm_start import WARM

NewDaemon = Callable[..., AbstractAsyncContextManager[Daemon]]

CONFIGS = {
    "v1": config_of(),
    "v2": config_of(),
    "v3": config_of(variables=("COLOUR",), secrets=("API_KEY",)),
    "broken": config_of({"GUEST_NEVER_HEALTHY": "1", "GUEST_CONSOLE": "1"}, start_period="1s"),
    "exited": config_of(
        {"GUEST_CONTAINER_EXIT_AFTER_S": "0.1", "GUEST_CONTAINER_EXIT_CODE": "7"},
        containers=("web", "worker"),
        checked=("web",),  # whose start period is borne; without any it is a minute
    ),
    "slow": config_of({"GUEST_SLOW_STAGE": "models:60"}),
    "fleeting": config_of({"GUEST_POWEROFF_AFTER_S": "15"}),
}


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release source with every tag of CONFIGS, of the reference guest."""
    source = tmp_path_factory.mktemp("releases")
    make_releases(source, CONFIGS, guest_image())
    return source


@asynccontextmanager
async def running(source: Path, **fields: Any) -> AsyncIterator[Daemon]:
    """A daemon that is ready; at the end nothing of it is left."""
    # what is imported already has read its environment
    how = {} if "environment" in fields else WARM
    daemon = Daemon(place(), source, **how | fields)
    try:
        await daemon.up()
        yield daemon
    finally:
        await daemon.leave()
