"""The daemon killed -9 at every point of every verb: each time the same end, and nothing astray.

The points are not listed here: a clean run of the watched daemon tells them (see
`tests.fakes.crashing_daemon`). The suite takes a sample of them, always the same, with a QEMU that
is up at once, and a few with a real one; `scripts/soak` takes all, with either.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.daemon.crash_runs import matrix
from tests.daemon.crash_stories import STORIES, Story
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of, guest_image, make_releases

FULL = os.environ.get("ENCLAVE_AGENT_FULL_MATRIX") == "1"
SAMPLED = 4  # points of a story that the suite takes
SAMPLED_ON_QEMU = 2
pytestmark = [pytest.mark.slow]
TAKES_LONG = pytest.mark.timeout(24 * 3600 if FULL else 300)

CONFIGS = {
    "v1": config_of(),
    "v2": config_of(),
    "slow": config_of({"GUEST_SLOW_STAGE": "models:60"}),
    "exited": config_of({"GUEST_CONTAINER_EXIT_AFTER_S": "0.01"}, start_period="100ms"),
    "secret": config_of(secrets=("API_KEY",)),
}
BY_THE_CLOCK = ("ringbuf-read", "console.log")  # a run need not pass them as often as another


@asynccontextmanager
async def watched(source: Path, **fields: Any) -> AsyncIterator[Daemon]:
    """A daemon that dies where it is ordered to."""
    home = place()
    command = (
        *(sys.executable, "-m", "tests.fakes.crashing_daemon"),
        *("--orders", str(home / "orders"), "--journal", str(home / "journal")),
    )
    daemon = Daemon(home, source, command=command, **fields)
    try:
        await daemon.up()
        yield daemon
    finally:
        await daemon.leave()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The fake QEMU, and a release source for it."""
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest_asyncio.fixture
async def daemon(parts: tuple[Path, Path]) -> AsyncIterator[Daemon]:
    program, source = parts
    async with watched(source, settings=settings(program)) as daemon:
        yield daemon


def sample(points: list[str], count: int, story: Story) -> list[str]:
    """So many, evenly spread and always the same, but others as root; or all of them."""
    if FULL:
        return points
    points = [point for point in points if not any(word in point for word in BY_THE_CLOCK)]
    step = max(1, len(points) // count)
    first = STORIES.index(story) + (step // 2 if os.geteuid() == 0 else 0)
    return points[first % step :: step]


@TAKES_LONG
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_killed_at_any_point_it_ends_as_if_it_had_not_been(
    daemon: Daemon, story: Story
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        return [(point, "") for point in sample(points, SAMPLED, story)]

    print(await matrix(daemon, story, take))


TWICE = [story for story in STORIES if story.name in ("blue_green", "stop_then_start", "delete")]


@TAKES_LONG
@pytest.mark.parametrize("story", TWICE, ids=lambda story: story.name)
async def test_killed_again_while_it_comes_back_it_ends_the_same(
    daemon: Daemon, story: Story
) -> None:
    """The second death is at the Nth point of the start, with another N each time."""

    def take(points: list[str]) -> list[tuple[str, str]]:
        first = sample(points, SAMPLED, story)[:: 1 if FULL else 2]
        return [(point, f"@{1 + place * 5 % 23}") for place, point in enumerate(first)]

    print(await matrix(daemon, story, take))


@TAKES_LONG
@pytest.mark.parametrize("story", TWICE, ids=lambda story: story.name)
async def test_asked_to_end_at_any_point_it_ends_in_order_and_goes_on(
    daemon: Daemon, story: Story
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        some = sample(points, SAMPLED, story)[1 :: 1 if FULL else 2]
        return [(f"TERM {point}", "") for point in some]

    print(await matrix(daemon, story, take))


# --- with a real QEMU --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release source of the reference guest."""
    source = tmp_path_factory.mktemp("releases")
    make_releases(source, CONFIGS, guest_image())
    return source


ON_QEMU = [story for story in STORIES if FULL or story.name in ("blue_green", "stop_then_start")]


@TAKES_LONG
@pytest.mark.qemu
@pytest.mark.parametrize("story", ON_QEMU, ids=lambda story: story.name)
async def test_killed_at_any_point_with_real_vms_it_ends_the_same(
    releases: Path, story: Story
) -> None:
    """On taps as root, in user mode otherwise."""

    def take(points: list[str]) -> list[tuple[str, str]]:
        return [(point, "") for point in sample(points, SAMPLED_ON_QEMU, story)]

    mode = "tap" if os.geteuid() == 0 else "user"
    async with watched(releases, mode=mode) as daemon:
        print(await matrix(daemon, story, take))
