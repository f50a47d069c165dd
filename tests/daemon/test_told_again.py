"""One request told ten times at once is done once, also if the agent is killed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.daemon.conftest import running
from tests.fakes.daemon_process import Answer, Daemon
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow]

TIMES = 10
KILLED_AFTER_S = (0.0, 0.02, 0.05)
CONFIGS = {"v1": config_of(), "v2": config_of()}


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """With `hello` v1 deployed."""
    source = fake_releases(tmp_path, CONFIGS)
    async with running(source, settings=settings(install(tmp_path))) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


async def told(daemon: Daemon, tag: str, key: str) -> list[Answer]:
    """The answers that came."""
    tasks = [asyncio.create_task(daemon.update(tag=tag, key=key)) for _ in range(TIMES)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    lost = [one for one in answers if isinstance(one, BaseException)]
    assert all(isinstance(one, aiohttp.ClientError | OSError) for one in lost), lost
    return [one for one in answers if isinstance(one, Answer)]


async def updates(daemon: Daemon) -> list[str]:
    answer = await daemon.get("/v1/deployments/hello/updates")
    return [update["id"] for update in answer.body["updates"]]


async def test_ten_times_at_once_is_one_update_and_ten_equal_answers(daemon: Daemon) -> None:
    before = await updates(daemon)
    answers = await told(daemon, "v2", "once")
    assert len(answers) == TIMES
    assert all(one.status == 202 and one.body == answers[0].body for one in answers)
    (made,) = set(await updates(daemon)) - set(before)
    assert answers[0].body["id"] == made
    replayed = [one for one in answers if "Idempotent-Replayed" in one.headers]
    assert len(replayed) == TIMES - 1
    await daemon.over()

    for delay_s in KILLED_AFTER_S:
        before = await updates(daemon)
        key = f"killed-after-{delay_s}"
        telling = asyncio.create_task(told(daemon, "v1", key))
        await asyncio.sleep(delay_s)
        daemon.kill()
        early = await telling
        await daemon.up()
        answers = await told(daemon, "v1", key)
        assert len(answers) == TIMES
        assert all(one.status == 202 and one.body == answers[0].body for one in answers)
        assert {one.body["id"] for one in (*early, *answers)} == {answers[0].body["id"]}
        assert set(await updates(daemon)) - set(before) == {answers[0].body["id"]}
        print(f"killed after {delay_s} s: {len(early)} answers came before, one update was made")
        assert (await daemon.over())["status"] == "completed"
    assert await discrepancies(daemon) == []


async def test_of_two_updates_at_once_the_second_is_refused(daemon: Daemon) -> None:
    answers = await asyncio.gather(daemon.update(tag="v2"), daemon.update(tag="v2"))
    assert sorted(one.status for one in answers) == [202, 409]
    (refused,) = [one for one in answers if one.status == 409]
    assert refused.code == "update_in_progress"
    assert [reason["code"] for reason in refused.body["reasons"]] == ["update_in_progress"]
    assert (await daemon.over())["status"] == "completed"
    assert await discrepancies(daemon) == []
