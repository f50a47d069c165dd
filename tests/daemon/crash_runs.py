"""One run of a story in which the daemon dies at a point, and how its end is compared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.daemon.crash_stories import Story
from tests.fakes.daemon_process import Answer, Daemon
from tests.fakes.host_truth import discrepancies

_HELLO = "/v1/deployments/hello"
_QUIET_S = 0.3


async def newest(daemon: Daemon) -> str | None:
    """The id of the newest update."""
    seen = await daemon.deployment()
    return seen["update"]["id"] if seen else None


async def tell(daemon: Daemon, update_before: str | None) -> dict[str, Any] | None:
    """The deployment, with the newest update before the request."""
    return with_before(await daemon.deployment(), update_before)


async def begun_since(daemon: Daemon, update: str | None) -> int:
    """How many updates are newer than that one (None: than none)."""
    ids = [row["id"] for row in (await daemon.get(f"{_HELLO}/updates")).body["updates"]]
    return len(ids) if update is None else ids.index(update)


def with_before(seen: dict[str, Any] | None, update: str | None) -> dict[str, Any] | None:
    return seen and seen | {"update_before": update}


async def attempt(daemon: Daemon, story: Story, key: str) -> Answer | None:
    """The answer, or None if the daemon died before it gave one."""
    try:
        return await story.ask(daemon, key)
    except (aiohttp.ClientError, OSError):
        return None


async def over_or_dead(daemon: Daemon, story: Story, before: str | None) -> None:
    """Until the story is over and stays so for a while, or the daemon is dead."""
    quiet_since: float | None = None
    while not daemon.ended:
        try:
            seen = await tell(daemon, before)
            done = story.asked(seen) and story.over(seen)
        except (aiohttp.ClientError, OSError):
            continue
        now = time.monotonic()
        quiet_since = (quiet_since or now) if done else None
        if quiet_since is not None and now - quiet_since > _QUIET_S:
            return
        await asyncio.sleep(0.02)


def order(daemon: Daemon, text: str) -> None:
    new = daemon.home / "orders.next"
    new.write_text(f"{time.monotonic_ns()} {text}")
    new.replace(daemon.home / "orders")


def no_orders(daemon: Daemon) -> None:
    (daemon.home / "orders").unlink()


async def go(daemon: Daemon, story: Story, death: str, again: str = "") -> bool:
    """One run, to its end; whether the daemon died at `death`.

    If so it is told the same once more. `again`: where it dies as it comes back, if it gets there.
    """
    before, key = await newest(daemon), str(time.monotonic_ns())
    order(daemon, death)
    try:
        answer = await attempt(daemon, story, key)
        assert answer is None or answer.status == 202, answer
        await over_or_dead(daemon, story, before)
    finally:
        no_orders(daemon)
    died = daemon.ended
    if died:
        assert daemon.process is not None
        assert daemon.process.returncode == (0 if death.startswith("TERM") else -signal.SIGKILL)
        await come_back(daemon, again)
        if answer is not None:
            await acknowledged(daemon, story, before)
        told = await story.ask(daemon, key)
        # what was done meanwhile cannot be done any more: 404, 409
        assert told.status in ((202,) if story.begins else (202, 404, 409)), told
    await daemon.until(lambda d: story.asked(with_before(d, before)), timeout_s=10)
    await daemon.until(story.over, timeout_s=30)
    return died


async def acknowledged(daemon: Daemon, story: Story, before: str | None) -> None:
    try:
        await daemon.until(lambda d: story.asked(with_before(d, before)), timeout_s=10)
    except AssertionError as error:
        raise AssertionError("what was acknowledged is not there") from error


async def come_back(daemon: Daemon, death: str) -> None:
    """Start; if it dies where it was ordered to, start again."""
    if death:
        order(daemon, death)
        daemon.start()
        while not daemon.ended:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                if (await daemon.get("/readyz")).status == 200:
                    break
            await asyncio.sleep(0.02)
        no_orders(daemon)
        if not daemon.ended:
            return
    await daemon.up()


async def outcome(daemon: Daemon, before: str | None) -> dict[str, Any]:
    """How things stand, for one end to be compared with another; which tag is left out."""
    seen = await daemon.deployment()
    if seen is None:
        return {"status": "absent", "served": await served(daemon)}
    update = seen["update"]
    return {
        "status": seen["status"],
        "update": (update["status"], update["strategy"], update["step"]),
        "error": update["error"] and update["error"]["code"],
        "served": "the active" if await served(daemon) == seen["tag"] else await served(daemon),
        "enclaves": len(seen["enclaves"]),
        "secrets": seen["stale_secrets"],
        "begun": await begun_since(daemon, before),
    }


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


async def points_of(daemon: Daemon, story: Story) -> list[str]:
    """Every point that a clean run passes."""
    journal = daemon.home / "journal"
    length = journal.stat().st_size
    assert not await go(daemon, story, "")
    return journal.read_bytes()[length:].decode().splitlines()


async def matrix(
    daemon: Daemon, story: Story, take: Callable[[list[str]], list[tuple[str, str]]]
) -> str:
    """Run the story with each pair of deaths that `take` makes of its points; a line of counts."""
    await story.prepare(daemon)
    await go(daemon, story, "")  # what is done only once, like keeping a tag's manifest, is done
    await story.prepare(daemon)
    before = await newest(daemon)
    points = await points_of(daemon, story)
    wanted = await outcome(daemon, before)
    assert await discrepancies(daemon) == []
    chosen = take(points)
    deaths, missed, wrong = 0, [], []
    for first, again in chosen:
        for death in nearest(points, first):
            await story.prepare(daemon)
            before = await newest(daemon)
            try:
                died = await go(daemon, story, death, again)
            except AssertionError as error:
                error.add_note(f"died at: {death} {again}")
                raise
            found = await outcome(daemon, before)
            problems = await discrepancies(daemon)
            if found != wanted or problems:
                wrong.append((death, again, found, problems))
            if died:
                deaths += 1
                break
            missed.append(death)
    assert not wrong, f"the clean run ends as {wanted}; these did not: {wrong}"
    assert deaths >= len(chosen) * 0.8, f"the points are not those of the clean run: {missed}"
    told = f"{len(points)} points, {len(chosen)} taken, {deaths} deaths there"
    return f"{story.name}: {told}, {len(missed)} others not passed"


def nearest(points: list[str], death: str) -> list[str]:
    """The point of this death, and those after it to take if a run does not pass it.

    A few points are passed by the clock: how often, say, the data plane is asked in a slow boot.
    """
    word = "TERM " if death.startswith("TERM ") else ""
    place = points.index(death.removeprefix("TERM "))
    return [word + point for point in points[place : place + 3]]
