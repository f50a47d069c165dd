"""The daemon killed -9 at every point of every verb: each time the same end, and nothing astray.

The points are not listed here: a clean run of the watched daemon tells them (see
`tests.fakes.crashing_daemon`). With a QEMU that is up at once all of them are taken; as root, a
sample, because `scripts/test` runs the same without root beside it. A sample is taken with a real
QEMU, too, and of second deaths; `scripts/soak` takes all of everything.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.api.roles import Permission
from agent.api.routes import ROUTES
from scripts.simulating.machine import SimulatedMachine
from scripts.simulating.profiles import PROFILES
from tests.daemon.crash_runs import Matrix
from tests.daemon.crash_stories import STORIES, Story, World
from tests.fakes import crashing_daemon
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of, guest_image, make_releases
from tests.fakes.warm_start import warm_start

FULL = os.environ.get("ENCLAVE_AGENT_FULL_MATRIX") == "1"
ROOT = os.geteuid() == 0
AT_ONCE = 3  # daemons that die side by side
SAMPLED = 4  # points of a story
SAMPLED_ON_QEMU = 2
pytestmark = [pytest.mark.slow]
TAKES_LONG = pytest.mark.timeout(24 * 3600 if FULL else 600)

CONFIGS = {
    "v1": config_of(),
    "v2": config_of(),
    "slow": config_of({"GUEST_SLOW_STAGE": "models:600"}),
    "exited": config_of({"GUEST_CONTAINER_EXIT_AFTER_S": "0.01"}, start_period="100ms"),
    "secret": config_of(secrets=("API_KEY",)),
    "gpu1": config_of(gpus=1),
    "gpu2": config_of(gpus=1),
    "gpus1": config_of(gpus=8),
    "gpus2": config_of(gpus=8),
}
BY_THE_CLOCK = ("ringbuf-read", "console.log")  # a run need not pass them as often as another
WATCHED = warm_start(crashing_daemon.main)


class Worlds:
    """Daemons that die where they are ordered to, for one story after another."""

    def __init__(
        self, directory: Path, source: Path, count: int, more: dict[str, Any], mode: str
    ) -> None:
        self._directory, self._source, self._count = directory, source, count
        self._more, self._mode = more, mode
        self._of: World | None = None
        self._daemons: list[Daemon] = []
        self._machines: list[SimulatedMachine] = []

    async def matrix(self, story: Story, take: Callable[[list[str]], Any]) -> str:
        """Where a story goes wrong its daemons serve no other one."""
        try:
            if self._of is not story.world:
                await self.leave()
                self._of = story.world
                await asyncio.gather(*(self._begin(story.world) for _ in range(self._count)))
            return await Matrix(self._daemons, story, take).run()
        except BaseException:
            await self.leave()
            raise

    async def _begin(self, world: World) -> None:
        home = place()
        daemon = Daemon(home, self._source, self._mode, self._more, launch=WATCHED)
        daemon.command = ("--orders", str(home / "orders"), "--journal", str(home / "journal"))
        self._daemons.append(daemon)
        daemon.configure(**world.sections)
        if world.profile is not None:
            machine = SimulatedMachine(self._directory / home.name)
            self._machines.append(machine)
            await asyncio.to_thread(machine.make, PROFILES[world.profile])
            daemon.configure(host=machine.keys)
            if "qemu" not in self._more:
                daemon.configure(qemu={"binary": str(machine.qemu)})
        await daemon.up()

    async def leave(self) -> None:
        self._of = None
        while self._daemons:
            await self._daemons.pop().leave()
        while self._machines:
            self._machines.pop().stop()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """With the fake QEMU."""
    directory = tmp_path_factory.mktemp("fake")
    program, source = install(directory), fake_releases(directory, CONFIGS)
    made = Worlds(directory, source, AT_ONCE, settings(program), "user")
    yield made
    asyncio.run(made.leave())


def sample(points: list[str], count: int, story: Story) -> list[str]:
    """So many, evenly spread and always the same, but others as root; or all of them."""
    if FULL:
        return points
    points = [point for point in points if not any(word in point for word in BY_THE_CLOCK)]
    step = max(1, len(points) // count)
    first = STORIES.index(story) + (step // 2 if ROOT else 0)
    return points[first % step :: step]


def test_every_request_that_changes_something_has_its_story() -> None:
    """Two are single transactions about what no story brings about, with tests of their own."""
    needs = (Permission.CHANGE, Permission.HOST)
    changing = {route.name for route in ROUTES if route.permission in needs}
    elsewhere = {"release_gpu", "reset_coordinator_epoch"}
    assert changing == {story.verb for story in STORIES if story.verb} | elsewhere


@TAKES_LONG
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_killed_at_any_point_it_ends_as_if_it_had_not_been(
    worlds: Worlds, story: Story, figures: list[str]
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        return [(point, "") for point in (sample(points, SAMPLED, story) if ROOT else points)]

    figures.append(await worlds.matrix(story, take))


TWICE = [story for story in STORIES if story.name in ("blue_green", "stop_then_start", "delete")]


@TAKES_LONG
@pytest.mark.parametrize("story", TWICE, ids=lambda story: story.name)
async def test_killed_again_while_it_comes_back_it_ends_the_same(
    worlds: Worlds, story: Story, figures: list[str]
) -> None:
    """The second death is at the Nth point of the start, with another N each time."""

    def take(points: list[str]) -> list[tuple[str, str]]:
        first = sample(points, SAMPLED, story)[:: 1 if FULL else 2]
        return [(point, f"@{1 + place * 5 % 23}") for place, point in enumerate(first)]

    figures.append(await worlds.matrix(story, take))


@TAKES_LONG
@pytest.mark.parametrize("story", TWICE, ids=lambda story: story.name)
async def test_asked_to_end_at_any_point_it_ends_in_order_and_goes_on(
    worlds: Worlds, story: Story, figures: list[str]
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        some = sample(points, SAMPLED, story)[1 :: 1 if FULL else 2]
        return [(f"TERM {point}", "") for point in some]

    figures.append(await worlds.matrix(story, take))


# --- with a real QEMU --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds_on_qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """With the reference guest: on taps as root, in user mode otherwise."""
    directory = tmp_path_factory.mktemp("real")
    source = directory / "releases"
    make_releases(source, CONFIGS, guest_image())
    made = Worlds(directory, source, 1, {}, "tap" if ROOT else "user")
    yield made
    asyncio.run(made.leave())


ON_QEMU = [story for story in STORIES if FULL or story.name in ("blue_green", "stop_then_start")]


@TAKES_LONG
@pytest.mark.qemu
@pytest.mark.parametrize("story", ON_QEMU, ids=lambda story: story.name)
async def test_killed_at_any_point_with_real_vms_it_ends_the_same(
    worlds_on_qemu: Worlds, story: Story, figures: list[str]
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        return [(point, "") for point in sample(points, SAMPLED_ON_QEMU, story)]

    figures.append(await worlds_on_qemu.matrix(story, take))
