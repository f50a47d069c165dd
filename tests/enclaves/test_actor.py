from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent.enclaves.actor import Actor


class Diary:
    """Work that writes down when it began and ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.may_end = asyncio.Event()

    async def work(self, name: str) -> str:
        self.lines.append(f"{name} begins")
        try:
            await self.may_end.wait()
        finally:
            self.lines.append(f"{name} ends")
        return name

    async def undo(self) -> None:
        self.lines.append("undone")

    async def look(self) -> None:
        self.lines.append("look")

    async def has(self, line: str) -> None:
        while line not in self.lines:
            await asyncio.sleep(0)


@pytest.fixture
async def diary() -> Diary:
    return Diary()


@pytest.fixture
async def owner(diary: Diary) -> AsyncIterator[Actor]:
    owner = Actor("test", diary.look)
    yield owner
    await owner.close()


async def test_orders_and_looks_are_done_one_after_the_other(owner: Actor, diary: Diary) -> None:
    first = asyncio.create_task(owner.ask(lambda: diary.work("a")))
    await diary.has("a begins")
    owner.nudge()
    second = asyncio.create_task(owner.ask(lambda: diary.work("b")))
    diary.may_end.set()
    assert await asyncio.gather(first, second) == ["a", "b"]
    assert diary.lines == ["a begins", "a ends", "look", "b begins", "b ends"]
    assert owner.free


async def test_an_error_is_the_callers_and_the_owner_goes_on(owner: Actor, diary: Diary) -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await owner.ask(fail)
    diary.may_end.set()
    assert await owner.ask(lambda: diary.work("a")) == "a"


async def test_a_revoked_order_is_undone_before_anything_later(owner: Actor, diary: Diary) -> None:
    launch = asyncio.create_task(owner.ask(lambda: diary.work("a"), undo=diary.undo))
    await diary.has("a begins")
    launch.cancel()
    diary.may_end.set()
    await owner.ask(lambda: diary.work("b"))
    assert diary.lines == ["a begins", "a ends", "undone", "b begins", "b ends"]
    assert launch.cancelled()


async def test_an_order_that_was_revoked_while_it_waited_is_not_begun(
    owner: Actor, diary: Diary
) -> None:
    first = asyncio.create_task(owner.ask(lambda: diary.work("a")))
    await diary.has("a begins")
    second = asyncio.create_task(owner.ask(lambda: diary.work("b"), undo=diary.undo))
    await asyncio.sleep(0)
    second.cancel()
    diary.may_end.set()
    await first
    await owner.ask(lambda: diary.work("c"))
    assert "b begins" not in diary.lines


async def test_an_order_without_undo_goes_on_when_its_caller_leaves(
    owner: Actor, diary: Diary
) -> None:
    stop = asyncio.create_task(owner.ask(lambda: diary.work("a")))
    await diary.has("a begins")
    stop.cancel()
    diary.may_end.set()
    await diary.has("a ends")
    assert "undone" not in diary.lines


async def test_closing_cancels_who_waits_and_undoes_nothing(diary: Diary) -> None:
    owner = Actor("test", diary.look)
    first = asyncio.create_task(owner.ask(lambda: diary.work("a"), undo=diary.undo))
    second = asyncio.create_task(owner.ask(lambda: diary.work("b")))
    await diary.has("a begins")
    await owner.close()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert diary.lines == ["a begins", "a ends"]


async def test_a_look_that_fails_does_not_end_the_owner(diary: Diary) -> None:
    async def fail() -> None:
        raise RuntimeError("a defect")

    owner = Actor("test", fail)
    owner.nudge()
    diary.may_end.set()
    assert await owner.ask(lambda: diary.work("a")) == "a"
    await owner.close()
