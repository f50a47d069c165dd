"""What the tests of the link share: releases for the fake QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fake_vms import fake_releases, install
from tests.fakes.guest_releases import config_of

CONFIGS = {
    "v1": config_of(),
    "v2": config_of(),
    "v3": config_of({"GUEST_HEALTHY_AFTER_S": "0"}),
    "slow": config_of({"GUEST_SLOW_STAGE": "models:2"}),
}


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The fake QEMU, and a source of releases for it."""
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)
