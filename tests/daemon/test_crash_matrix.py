"""The daemon killed -9 at every point of every verb: each time the same end, and nothing astray.

The points are not listed here: a clean run of the watched daemon tells them (see
`tests.fakes.crashing_daemon`). With a QEMU that is up at once all of them are taken; as root a
sample, since `scripts/test` leaves them to its run without root. A sample is taken with a real
QEMU, too, and of second deaths; `scripts/soak` takes all of everything.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.api.roles import Permission
from agent.api.routes import ROUTES
from agent.enclaves.port import Enclaves
from agent.inventory.port import Gpus
from agent.releases.port import Releases
from agent.store.port import Store
from agent.traffic.port import Traffic
from agent.updates.admission.gpus import Preparation
from simulator.machine import SimulatedMachine
from simulator.profiles import PROFILES
from tests.daemon.crash_runs import Matrix, Take, is_by_the_clock
from tests.daemon.crash_stories import GPUS, STORIES, Story, World
from tests.daemon.full_disk_runs import FullDisk, is_write
from tests.fakes import crashing_daemon
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of, guest_image, make_releases
from tests.fakes.warm_start import warm_start

FULL = os.environ.get("ENCLAVE_AGENT_FULL_MATRIX") == "1"
ROOT = os.geteuid() == 0
AT_ONCE = 3 if FULL or not ROOT else 1  # daemons that die side by side
SAMPLED = 2  # points of a story
SAMPLED_TWICE = 4
SAMPLED_ON_QEMU = 3 if ROOT else 2
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
    "gpus1": config_of(gpus=GPUS),
    "gpus2": config_of(gpus=GPUS),
    "gpus_exited": config_of(
        {"GUEST_CONTAINER_EXIT_AFTER_S": "0.01"}, start_period="100ms", gpus=GPUS
    ),
}
OF_LINKS = ("Popen ip", "Popen bridge", "Popen nft", "/dev/net/tun", "/enc-ID/")  # on taps alone
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
        self.passed: set[str] = set()  # points, whatever their number
        self.stories: set[str] = set()

    async def run(self, story: Story, take: Take, kind: type[Matrix] = Matrix) -> str:
        """Where a story goes wrong its daemons serve no other one."""
        try:
            if self._of is not story.world:
                await self.end()
                self._of = story.world
                await asyncio.gather(*(self._begin(story.world) for _ in range(self._count)))
            matrix = kind(self._daemons, story, take)
            told = await matrix.run()
        except BaseException:
            await self.leave()
            raise
        self.passed |= {point.rpartition(" #")[0] for point in matrix.points}
        self.stories.add(story.name)
        return told

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

    async def end(self) -> None:
        """All those deaths broke no chain of events."""
        try:
            for daemon in self._daemons:
                code, _, told = await daemon.cli("events", "--verify")
                assert code == 0, told
        finally:
            await self.leave()

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
    asyncio.run(made.end())


def sample(points: list[str], count: int, story: Story) -> list[str]:
    """So many, evenly spread and always the same, but others as root; or all of them."""
    if FULL:
        return points
    points = [point for point in points if not is_by_the_clock(point)]
    step = max(1, len(points) // count)
    first = STORIES.index(story) + (step // 2 if ROOT else 0)
    return points[first % step :: step]


def whole(points: list[str]) -> list[str]:
    """All, but of what is done by the clock the first two times."""
    return [one for one in points if not is_by_the_clock(one) or one[-3:] in (" #1", " #2")]


def test_every_request_that_changes_something_has_its_story() -> None:
    """Three are single transactions about what no story brings about, with tests of their own."""
    needs = (Permission.CHANGE, Permission.HOST)
    changing = {
        route.name for route in ROUTES if route.permission in needs and route.method != "GET"
    }
    elsewhere = {"accept_chip", "release_gpu", "reset_coordinator_epoch"}
    assert changing == {story.verb for story in STORIES if story.verb} | elsewhere


@TAKES_LONG
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_killed_at_any_point_it_ends_as_if_it_had_not_been(
    worlds: Worlds, story: Story, figures: list[str]
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        chosen = sample(points, SAMPLED, story) if ROOT else points if FULL else whole(points)
        return [(point, "") for point in chosen]

    figures.append(await worlds.run(story, take))


TWICE = [story for story in STORIES if story.name in ("blue_green", "stop_then_start", "delete")]


@TAKES_LONG
@pytest.mark.parametrize("story", TWICE, ids=lambda story: story.name)
async def test_killed_again_while_it_comes_back_it_ends_the_same(
    worlds: Worlds, story: Story, figures: list[str]
) -> None:
    """The second death is at the Nth point of the start, with another N each time."""

    def take(points: list[str]) -> list[tuple[str, str]]:
        first = sample(points, SAMPLED_TWICE, story)[:: 1 if FULL else 2]
        return [(point, f"@{1 + place * 5 % 23}") for place, point in enumerate(first)]

    figures.append(await worlds.run(story, take))


@TAKES_LONG
@pytest.mark.parametrize("story", TWICE, ids=lambda story: story.name)
async def test_asked_to_end_at_any_point_it_ends_in_order_and_goes_on(
    worlds: Worlds, story: Story, figures: list[str]
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        some = sample(points, SAMPLED_TWICE, story)[1 :: 1 if FULL else 2]
        return [(f"TERM {point}", "") for point in some]

    figures.append(await worlds.run(story, take))


FILLED = ("fresh", "blue_green", "stop_then_start", "secret", "new_secrets", "stop", "delete")


@TAKES_LONG
@pytest.mark.parametrize(
    "story", [story for story in STORIES if story.name in FILLED], ids=lambda story: story.name
)
async def test_full_at_any_write_the_disk_costs_time_or_the_update_and_nothing_else(
    worlds: Worlds, story: Story, figures: list[str]
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        writes = [point for point in points if is_write(point)]
        return [(f"FULL {one}", "") for one in (writes[::4] if ROOT and not FULL else writes)]

    figures.append(await worlds.run(story, take, FullDisk))


PORTS = {
    "store": Store,
    "enclaves": Enclaves,
    "traffic": Traffic,
    "releases": Releases,
    "gpus": Gpus,
    "preparation": Preparation,
}
NOT_BROUGHT_ABOUT = {
    "enclaves.remove": "of a VM that the store does not know: test_damaged_store",
    "gpus.quarantine": "of a GPU that fails: tests/inventory",
    "gpus.release": "of a GPU in quarantine: tests/inventory",
    "preparation.set_aside": "of a GPU whose QEMU does not end: tests/updates",
}


def test_every_call_that_changes_something_was_among_the_points(worlds: Worlds) -> None:
    if not worlds.stories >= {story.name for story in STORIES}:
        pytest.skip("only some of the stories were run")
    assert set(PORTS) == set(crashing_daemon.WATCHED)
    calls = {
        f"{name}.{call}"
        for name, port in PORTS.items()
        for call, _ in inspect.getmembers(port, inspect.iscoroutinefunction)
        if call not in crashing_daemon.LOOKS
    }
    never = {call for call in calls if f"before {call}" not in worlds.passed}
    assert never == set(NOT_BROUGHT_ABOUT)


# --- with a real QEMU --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds_on_qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """With the reference guest: on taps as root, in user mode otherwise."""
    directory = tmp_path_factory.mktemp("real")
    source = directory / "releases"
    make_releases(source, CONFIGS, guest_image())
    made = Worlds(directory, source, 1, {}, "tap" if ROOT else "user")
    yield made
    asyncio.run(made.end())


ON_QEMU = [story for story in STORIES if FULL or story.name in ("blue_green", "stop_then_start")]


@TAKES_LONG
@pytest.mark.qemu
@pytest.mark.parametrize("story", ON_QEMU, ids=lambda story: story.name)
async def test_killed_at_any_point_with_real_vms_it_ends_the_same(
    worlds_on_qemu: Worlds, story: Story, figures: list[str]
) -> None:
    def take(points: list[str]) -> list[tuple[str, str]]:
        if ROOT and not FULL:
            points = [point for point in points if any(word in point for word in OF_LINKS)]
        return [(point, "") for point in sample(points, SAMPLED_ON_QEMU, story)]

    figures.append(await worlds_on_qemu.run(story, take))
