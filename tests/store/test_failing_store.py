"""The failing store fails as told, and is a store otherwise."""

from __future__ import annotations

import pytest

from agent.store.port import Reader, StoreError, StoreFullError
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.rows import deployment
from tests.fakes.failing_store import FailingStore


@pytest.fixture
def store() -> FailingStore:
    return FailingStore(MemoryStore(ManualClock().now))


def names(reader: Reader) -> list[str]:
    return [row.name for row in reader.deployments()]


async def test_the_named_commit_fails_and_leaves_nothing(store: FailingStore):
    store.fail_commit(2, StoreFullError("full"))
    await store.transact(lambda t: t.put_deployment(deployment("one")))
    with pytest.raises(StoreFullError):
        await store.transact(lambda t: t.put_deployment(deployment("two")))
    await store.transact(lambda t: t.put_deployment(deployment("three")))
    assert await store.read(names) == ["one", "three"]
    assert store.commits == 3


async def test_a_failure_after_the_commit_loses_only_the_answer(store: FailingStore):
    store.fail_commit(1, StoreError("gone"), after=True)
    with pytest.raises(StoreError, match="gone"):
        await store.transact(lambda t: t.put_deployment(deployment("one")))
    assert await store.read(names) == ["one"]


async def test_all_commits_fail_until_told_otherwise(store: FailingStore):
    store.fail_all(StoreError("gone"))
    for _ in range(2):
        with pytest.raises(StoreError, match="gone"):
            await store.transact(lambda t: t.put_deployment(deployment("one")))
    store.fail_all(None)
    await store.transact(lambda t: t.put_deployment(deployment("two")))
    assert await store.read(names) == ["two"]
    await store.close()
