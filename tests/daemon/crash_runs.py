"""One run of a story in which the daemon dies at a point, and how its end is compared."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.daemon.crash_stories import Scene, Story
from tests.fakes.daemon_process import Answer, Daemon
from tests.fakes.host_truth import discrepancies

_HELLO = "/v1/deployments/hello"
_QUIET_S = 0.3
_POLL_S = 0.03
_SELDOM_S = 0.3
_GLANCE_S = 0.01
_AT_MOST_S = 120.0


async def attempt(daemon: Daemon, story: Story, key: str) -> Answer | None:
    """The answer, or None if the daemon died before it gave one."""
    try:
        return await story.ask(daemon, key)
    except (aiohttp.ClientError, OSError):
        return None


async def until(daemon: Daemon, story: Story, holds: Callable[[Scene], bool], what: str) -> None:
    deadline = time.monotonic() + _AT_MOST_S
    while not holds(scene := await story.look(daemon)):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: never; {scene}\n{daemon.log_tail()}")
        await asyncio.sleep(_POLL_S)


async def over_or_dead(daemon: Daemon, story: Story, before: Scene, death: str) -> None:
    """Until the story is over and stays so for a while, or the daemon is dead.

    Where it is ordered to die it is seldom looked at: an onlooker costs it as much as its work.
    """
    quiet_since: float | None = None
    deadline = time.monotonic() + _AT_MOST_S
    while not daemon.ended:
        assert time.monotonic() < deadline, f"it goes on and on:\n{daemon.log_tail()}"
        try:
            now = await story.look(daemon)
            done = story.asked(before, now) and story.over(before, now)
        except OSError:
            await pause(daemon, _POLL_S)
            continue
        moment = time.monotonic()
        quiet_since = (quiet_since or moment) if done else None
        if quiet_since is not None and moment - quiet_since > _QUIET_S:
            return
        await pause(daemon, _POLL_S if done or not death else _SELDOM_S)


async def dead(daemon: Daemon, death: str, journal: int) -> bool:
    """Once its orders were taken back: whether it died of them, or is about to.

    `journal`: how long that was before them. One that is at its point as they are taken back has
    it in there, at the latest when it answers again.
    """
    with contextlib.suppress(OSError):
        await daemon.get("/healthz")
    points = points_since(daemon, journal)
    passed = len(points) >= int(death[1:]) if death[:1] == "@" else point_of(death) in points
    if not daemon.ended and not passed:
        return False
    assert daemon.process is not None
    await asyncio.to_thread(daemon.process.wait, 30)
    return True


async def pause(daemon: Daemon, duration_s: float) -> None:
    """So long, or until the daemon is dead."""
    until = time.monotonic() + duration_s
    while not daemon.ended and time.monotonic() < until:
        await asyncio.sleep(_GLANCE_S)


def order(daemon: Daemon, text: str) -> int:
    """How long the journal was before."""
    new = daemon.home / "orders.next"
    new.write_text(f"{time.monotonic_ns()} {text}")
    journal = daemon.home / "journal"
    length = journal.stat().st_size
    new.replace(daemon.home / "orders")
    return length


def points_since(daemon: Daemon, journal: int) -> list[str]:
    return (daemon.home / "journal").read_bytes()[journal:].decode().splitlines()


def no_orders(daemon: Daemon) -> None:
    (daemon.home / "orders").unlink()


async def go(daemon: Daemon, story: Story, death: str, again: str = "") -> int:
    """One run, to its end; how often the daemon died.

    If it died at `death` it is told the same once more. `again`: where it dies as it comes back,
    if it gets there.
    """
    before, key = await story.look(daemon), str(time.monotonic_ns())
    journal = order(daemon, death)
    try:
        answer = await attempt(daemon, story, key)
        assert answer is None or 200 <= answer.status < 300, answer
        if death:
            await pause(daemon, _SELDOM_S)
        await over_or_dead(daemon, story, before, death)
    finally:
        no_orders(daemon)
    deaths = 0
    if await dead(daemon, death, journal):
        assert daemon.process is not None
        assert daemon.process.returncode == (0 if death.startswith("TERM") else -signal.SIGKILL)
        deaths = 1 + await come_back(daemon, again)
        if answer is not None:
            lost = "what was acknowledged is there"
            await until(daemon, story, lambda now: story.asked(before, now), lost)
        told = await story.ask(daemon, key)
        # what was done meanwhile cannot be done any more: 404, 409, 410
        gone = () if story.begins else (404, 409, 410)
        assert 200 <= told.status < 300 or told.status in gone, told
    await until(daemon, story, lambda now: story.asked(before, now), "it is recorded")
    await until(daemon, story, lambda now: story.over(before, now), "it is over")
    await story.after(daemon)
    return deaths


async def come_back(daemon: Daemon, death: str) -> bool:
    """Start; if it dies where it was ordered to, start again. Whether it did."""
    if death:
        journal = order(daemon, death)
        daemon.start()
        while not daemon.ended:
            with contextlib.suppress(OSError):
                if (await daemon.get("/readyz")).status == 200:
                    break
            await pause(daemon, _POLL_S)
        no_orders(daemon)
        if not await dead(daemon, death, journal):
            return False
    await daemon.up()
    return bool(death)


async def outcome(daemon: Daemon, story: Story, before: Scene) -> dict[str, Any]:
    """How things stand, for one end to be compared with another; which tag is left out."""
    now = await story.look(daemon)
    found = {"draining": now.host["draining"], "kept": now.kept}
    seen = now.deployment
    if seen is None:
        return found | {"status": "absent", "served": await served(daemon)}
    update = seen["update"]
    untouched = how_it_stands(before.update) == how_it_stands(update)
    return found | {
        "status": seen["status"],
        "update": "as before" if untouched else how_it_stands(update)[1:],
        "error": None if untouched else update["error"] and update["error"]["code"],
        "served": "the active" if await served(daemon) == seen["tag"] else await served(daemon),
        "enclaves": len(seen["enclaves"]),
        "secrets": seen["stale_secrets"],
        "begun": await begun_since(daemon, before),
    }


def how_it_stands(update: Any) -> tuple[str, ...]:
    return tuple(update[what] for what in ("id", "status", "strategy", "step")) if update else ()


async def begun_since(daemon: Daemon, before: Scene) -> int:
    """How many updates are newer than what was the newest then."""
    ids = [row["id"] for row in (await daemon.get(f"{_HELLO}/updates")).body["updates"]]
    old = before.update["id"] if before.update else None
    return ids.index(old) if old in ids else len(ids)


async def served(daemon: Daemon) -> str:
    """The version that answers through the data plane, or how it refuses."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    except ConnectionRefusedError:
        return "refused"
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        said = await reader.read()
        return str(json.loads(said.partition(b"\r\n\r\n")[2])["version"])
    finally:
        writer.close()


async def clean_points_of(daemon: Daemon, story: Story) -> list[str]:
    """Every point that a clean run passes."""
    journal = (daemon.home / "journal").stat().st_size
    assert await go(daemon, story, "") == 0
    return points_since(daemon, journal)


Take = Callable[[list[str]], list[tuple[str, str]]]


@dataclass
class Matrix:
    """A story run with each pair of deaths that `take` makes of its points, on these daemons."""

    daemons: Sequence[Daemon]
    story: Story
    take: Take
    points: list[str] = field(default_factory=list)  # of the clean run
    wanted: dict[str, Any] = field(default_factory=dict)  # its outcome
    deaths: int = 0
    second_deaths: int = 0
    missed: list[str] = field(default_factory=list)
    never: list[str] = field(
        default_factory=list
    )  # chosen, and neither it nor one after it passed
    wrong: list[Any] = field(default_factory=list)

    async def run(self) -> str:
        """A line of counts. Raises AssertionError for any end that is not that of a clean run."""
        first = self.daemons[0]
        await self._once(first)
        await self.story.prepare(first)
        before = await self.story.look(first)
        self.points = await clean_points_of(first, self.story)
        self.wanted = await outcome(first, self.story, before)
        assert await discrepancies(first) == []
        chosen = self.take(self.points)
        left = iter(chosen)
        await self._with_all(lambda daemon: self._work(daemon, left))
        assert not self.wrong, f"a clean run ends as {self.wanted}; these did not: {self.wrong}"
        never = await self._missing(few=int(len(chosen) * 0.05) + 1)
        assert not never, f"the points are not those of the clean run: {never}"
        if any(again for _, again in chosen):
            assert self.second_deaths >= len(chosen) / 2, "the second deaths do not come about"
        return self._told(len(chosen))

    async def _missing(self, few: int) -> list[str]:
        """Points that were never passed, if they are more than a few.

        What a second clean run does not do either is done by the clock, like a backup of the
        store, and is not missing.
        """
        never = [point for point in self.never if not is_by_the_clock(point)]
        if len(never) > few:
            first = self.daemons[0]
            await self.story.prepare(first)
            passed = await clean_points_of(first, self.story)
            never = [point for point in never if point_of(point) in passed]
        return never if len(never) > few else []

    def _told(self, taken: int) -> str:
        more = f", {self.second_deaths} second deaths" if self.second_deaths else ""
        return (
            f"{self.story.name}: {len(self.points)} points, {taken} taken, "
            f"{self.deaths} deaths there{more}, {len(self.missed)} others not passed"
        )

    async def _with_all(self, do: Callable[[Daemon], Any]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for daemon in self.daemons:
                tasks.create_task(do(daemon))

    async def _once(self, daemon: Daemon) -> None:
        """So that what is done only once, like keeping a tag's manifest, is done."""
        await self.story.prepare(daemon)
        await go(daemon, self.story, "")

    async def _work(self, daemon: Daemon, left: Iterator[tuple[str, str]]) -> None:
        for first, again in left:
            for death in nearest(self.points, first):
                try:
                    died = await self.try_(daemon, death, again)
                except Exception as error:
                    error.add_note(f"died at: {death} {again}")
                    raise
                if died:
                    break
                self.missed.append(death)
            else:
                self.never.append(first)

    async def try_(self, daemon: Daemon, death: str, again: str) -> bool:
        """One run of it; whether it came about."""
        await self.story.prepare(daemon)
        before = await self.story.look(daemon)
        deaths = await go(daemon, self.story, death, again)
        found = await outcome(daemon, self.story, before)
        problems = await discrepancies(daemon)
        if found != self.wanted or problems:
            self.wrong.append((death, again, found, problems))
        self.deaths += deaths > 0
        self.second_deaths += deaths > 1
        return deaths > 0


def is_by_the_clock(point: str) -> bool:
    """Whether it is done again and again: a run need not do it as often as another."""
    return any(word in point for word in ("ringbuf-read", "console.log", "hold_ports"))


def point_of(death: str) -> str:
    """The point of an order, without its word."""
    return death.removeprefix("TERM ").removeprefix("FULL ")


def nearest(points: list[str], death: str) -> list[str]:
    """The point of this death, and those after it to take if a run does not pass it.

    A few points are passed by the clock: how often, say, the data plane is asked in a slow boot.
    """
    point = point_of(death)
    word, place = death.removesuffix(point), points.index(point)
    return [word + point for point in itertools.islice(points, place, place + 3)]
