"""Staged values of secrets: recorded or removed, whatever else is asked for meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.model.ids import DeploymentName
from agent.store.port import Transaction
from agent.updates.orders import Caller
from agent.updates.secrets.values import SecretValues
from agent.updates.secrets.versions import Secrets, Staged
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.rows import deployment, revision

NAME = DeploymentName("web")
CALLER = Caller(name="test")


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore(ManualClock().now)

    def work(tx: Transaction) -> None:
        tx.put_deployment(deployment(NAME))
        tx.put_revision(revision(1, NAME))

    await store.transact(work)
    return store


@pytest.fixture
def secret_values(tmp_path: Path) -> SecretValues:
    return SecretValues(tmp_path / "secrets", tmp_path / "key")


def kept(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "secrets" / NAME
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.is_dir() else {}


async def record(store: MemoryStore, staged: Staged) -> None:
    await store.transact(lambda tx: staged.record(tx, CALLER))


async def test_a_value_that_is_not_recorded_is_removed(
    store: MemoryStore, secret_values: SecretValues, tmp_path: Path
) -> None:
    secrets = Secrets(store, secret_values)

    async def refused() -> None:
        async with secrets.staging(NAME, {"KEY": "value"}):
            assert kept(tmp_path) == {"KEY.1": "value"}
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        await refused()
    assert kept(tmp_path) == {}


async def test_two_requests_at_once_get_a_version_each_and_keep_their_values(
    store: MemoryStore, secret_values: SecretValues, tmp_path: Path
) -> None:
    secrets = Secrets(store, secret_values)
    entered, versions = asyncio.Event(), []

    async def second() -> None:
        entered.set()
        async with secrets.staging(NAME, {"KEY": "two"}) as staged:
            versions.append(staged.versions["KEY"])
            await record(store, staged)

    async with secrets.staging(NAME, {"KEY": "one"}) as staged:
        other = asyncio.create_task(second())
        await entered.wait()
        await store.read(lambda tx: tx.deployments())  # the other one gets as far as it can
        versions.append(staged.versions["KEY"])
        await record(store, staged)
        assert kept(tmp_path) == {"KEY.1": "one"}
    await other
    assert versions == [1, 2]
    assert kept(tmp_path) == {"KEY.2": "two"}
    assert (await store.read(lambda tx: tx.secret_versions(NAME)))["KEY"][0] == 2


def test_a_value_comes_back_byte_for_byte(secret_values: SecretValues) -> None:
    secret_values.put(NAME, "KEY", 1, "one\r\ntwo\r\u00e9\n")
    assert secret_values.get(NAME, "KEY", 1) == "one\r\ntwo\r\u00e9\n"


async def test_requests_of_other_deployments_do_not_wait(
    store: MemoryStore, secret_values: SecretValues
) -> None:
    secrets = Secrets(store, secret_values)
    async with secrets.staging(NAME, {"KEY": "one"}):
        async with asyncio.timeout(10), secrets.staging(DeploymentName("other"), {"KEY": "two"}):
            pass


async def test_a_value_that_the_enclave_has_already_gets_its_version_back(
    store: MemoryStore, secret_values: SecretValues, tmp_path: Path
) -> None:
    """So it is not stale: there is nothing that a relaunch would change."""
    secrets = Secrets(store, secret_values)

    async def put(values: dict[str, str | None]) -> int:
        async with secrets.staging(NAME, values) as staged:
            await record(store, staged)
        return staged.versions.get("KEY", 0)

    assert await put({"KEY": "old"}) == 1
    active = msgspec.structs.replace(deployment(NAME), active_revision=2)
    given = msgspec.structs.replace(revision(2, NAME), secrets={"KEY": 1})

    def serve(tx: Transaction) -> None:
        tx.put_revision(given)
        tx.put_deployment(active)

    await store.transact(serve)
    assert await put({"KEY": "new"}) == 2
    assert await put({"KEY": "old"}) == 1
    assert await put({"KEY": None}) == 0
    assert await put({"KEY": "old"}) == 1
    assert kept(tmp_path) == {"KEY.1": "old"}
    assert await put({"KEY": "newer"}) == 2
    secret_values.forget(NAME)  # the host was rebooted
    assert await put({"KEY": "old"}) == 1
    assert kept(tmp_path) == {"KEY.1": "old"}


async def test_a_value_has_every_version_back_that_it_was(
    store: MemoryStore, secret_values: SecretValues, tmp_path: Path
) -> None:
    secrets = Secrets(store, secret_values)
    given = [
        msgspec.structs.replace(revision(number, NAME), secrets={"KEY": version})
        for number, version in ((2, 1), (3, 2), (4, 3))
    ]

    def fill(tx: Transaction) -> None:
        for row, value in zip(given, ("old", "new", "old"), strict=True):
            tx.put_revision(row)
            digest = secret_values.digest(value)
            tx.put_secret_version(NAME, "KEY", row.secrets["KEY"], digest)

    await store.transact(fill)
    async with secrets.staging(NAME, {"KEY": "new"}) as staged:
        await record(store, staged)
    assert staged.versions == {"KEY": 2}
    assert kept(tmp_path) == {"KEY.2": "new"}
    async with secrets.staging(NAME, {"KEY": "old"}) as staged:
        await record(store, staged)
    assert staged.versions == {"KEY": 3}
    assert kept(tmp_path) == {"KEY.1": "old", "KEY.2": "new", "KEY.3": "old"}


async def test_a_version_whose_digest_an_older_agent_forgot_is_told_by_its_value(
    store: MemoryStore, secret_values: SecretValues
) -> None:
    secrets = Secrets(store, secret_values)
    given = msgspec.structs.replace(revision(2, NAME), secrets={"KEY": 1})
    secret_values.put(NAME, "KEY", 1, "old")
    await store.transact(lambda tx: tx.put_revision(given))
    async with secrets.staging(NAME, {"KEY": "old"}) as staged:
        assert staged.versions == {"KEY": 1}
