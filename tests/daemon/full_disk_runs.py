"""One run of a story in which the disk is full from a point on, and stays so for a while."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from tests.daemon.crash_runs import Matrix, no_orders, order, outcome, served, until
from tests.daemon.crash_stories import Scene, Story
from tests.fakes.daemon_process import Daemon
from tests.fakes.host_truth import discrepancies

_POLL_S = 0.03
_FULL = {"disk_full", "disk_insufficient"}


def is_write(point: str) -> bool:
    """Whether it is one that a full disk stops."""
    what = point.split(" ")
    return point.startswith("before store.transact") or (
        what[0] in ("open", "os.mkdir", "os.symlink", "os.link") and what[1].startswith("/state/")
    )


@dataclass
class FullDisk(Matrix):
    """Each `FULL` point: it says so, goes on when there is room, and loses nothing meanwhile."""

    async def try_(self, daemon: Daemon, death: str, again: str) -> bool:
        await self.story.prepare(daemon)
        before = await self.story.look(daemon)
        ran_full = await fill(daemon, self.story, before, death)
        found = await outcome(daemon, self.story, before)
        problems = await discrepancies(daemon)
        if problems or not (found == self.wanted or is_failed_well(found)):
            self.wrong.append((death, found, problems))
        self.deaths += ran_full
        return ran_full

    def _told(self, taken: int) -> str:
        return (
            f"{self.story.name}: {len(self.points)} points, the disk full at {self.deaths} of "
            f"{taken} writes, {len(self.missed)} others not passed"
        )


async def fill(daemon: Daemon, story: Story, before: Scene, point: str) -> bool:
    """One run, to its end; whether the point was passed."""
    key = str(time.monotonic_ns())
    order(daemon, point)
    try:
        answer = await story.ask(daemon, key)
        refused = answer.status >= 400
        if refused:
            assert answer.code in _FULL, answer
            now = await story.look(daemon)
            assert now.update == before.update, "refused, and begun all the same"
        else:
            await stalled_or_over(daemon, story, before)
        ran_full = (daemon.home / "full").exists()
        if before.runs and _goes_on_serving(await story.look(daemon)):
            assert await served(daemon) != "refused"
    finally:
        no_orders(daemon)
    (daemon.home / "full").unlink(missing_ok=True)
    if refused:
        told = await story.ask(daemon, key)
        assert told.status < 300, told
    await until(daemon, story, lambda now: story.asked(before, now), "it is recorded")
    await until(daemon, story, lambda now: is_over(story, before, now), "it is over")
    await story.after(daemon)
    return ran_full


def _goes_on_serving(now: Scene) -> bool:
    return now.update is not None and now.update["strategy"] == "blue_green"


def is_over(story: Story, before: Scene, now: Scene) -> bool:
    """Or it failed, and what there was is cleaned up."""
    failed = now.finished and now.update != before.update and now.update["status"] == "failed"
    return story.over(before, now) or failed


def is_failed_well(found: dict[str, Any]) -> bool:
    """For want of room, with the old one serving if it was not to be stopped first."""
    update = found.get("update")
    status, strategy, _ = update if isinstance(update, tuple) else ("", "", "")
    if status != "failed" or found["error"] not in {*_FULL, "traffic_unavailable"}:
        return False
    if strategy == "blue_green":
        return bool(found["status"] == "running" and found["served"] == "the active")
    return bool(found["status"] == "failed" and found["served"] == "refused")


async def stalled_or_over(daemon: Daemon, story: Story, before: Scene) -> None:
    """Until all is done, or the daemon says that the disk keeps it from going on."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        problems = (await daemon.get("/status")).body["problems"]
        if any(problem["code"] == "disk_full" for problem in problems):
            return
        now = await story.look(daemon)
        if story.asked(before, now) and is_over(story, before, now):
            return
        await asyncio.sleep(_POLL_S)
    raise AssertionError(f"neither over nor told:\n{daemon.log_tail()}")
