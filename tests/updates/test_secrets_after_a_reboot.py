"""Values are gone after a reboot: whatever is supplied then, the deployment comes up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent.host.clock import ManualClock
from agent.model.ids import DeploymentName
from agent.model.release import Release
from agent.model.resources import Listen
from agent.model.revision import DeploymentStatus
from agent.model.update import UpdateStatus
from agent.store.memory import MemoryStore
from agent.updates.port import Change, ConflictError, NewDeployment, RefusedError
from agent.updates.published import DeploymentFacts, Feasibility
from tests.fakes.instant_host import CALLER, InstantHost, InstantReleases

NAME = DeploymentName("web")
LISTEN = Listen(address="127.0.0.1", port=8443)
WAITING, RUNNING = DeploymentStatus.WAITING_FOR_SECRETS, DeploymentStatus.RUNNING


class Sealed(InstantReleases):
    """Every release needs KEY."""

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        release = await super().resolve(repo, tag, digest)
        return msgspec.structs.replace(release, secret_names=("KEY",))


class Machine:
    """A host with `web` at v1, given KEY=one, that may be rebooted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock.now)
        self.host = InstantHost(self.store, self.clock, directory, Sealed())
        self.boots = 1

    async def reboot(self) -> None:
        await self.host.room.close()
        self.host.room.parts.vault.forget(NAME)
        self.boots += 1
        self.clock.reboot(f"boot-{self.boots}")
        self.host = InstantHost(self.store, self.clock, self.directory, Sealed())
        await self.host.room.start()

    @property
    def facts(self) -> DeploymentFacts:
        return self.host.engine.snapshot.deployments[NAME]

    @property
    def given(self) -> dict[str, int]:
        assert self.facts.revision is not None
        return dict(self.facts.revision.secrets)

    async def put(self, **values: str | None) -> tuple[str, ...]:
        return await self.host.engine.set_secrets(NAME, values, CALLER)

    async def until(self, status: DeploymentStatus) -> None:
        async with asyncio.timeout(20):
            while self.facts.status is not status:
                await self.tick()

    async def tick(self) -> None:
        self.clock.advance(1)
        self.host.room.bells.ring()
        await asyncio.sleep(0.001)

    async def stays(self, status: DeploymentStatus) -> None:
        for _ in range(100):
            await self.tick()
            assert self.facts.status is status

    def problems(self) -> dict[str, str]:
        return {one.code: one.detail for one in self.host.engine.snapshot.problems}

    async def events(self, kind: str) -> list[str]:
        rows = await self.host.engine.events(0)
        return [f"{row.from_} {row.to}: {row.reason}" for row in rows if row.kind == kind]


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path)
    await machine.host.room.start()
    request = NewDeployment(
        name=NAME, repo="hello", tag="v1", listen=LISTEN, secrets={"KEY": "one"}
    )
    await machine.host.finish(await machine.host.engine.deploy(request, CALLER))
    yield machine
    await machine.host.room.close()


async def test_what_the_enclave_was_given_resumes_it_although_newer_ones_were_recorded(
    machine: Machine,
) -> None:
    assert await machine.put(KEY="two") == ("KEY",)
    await machine.reboot()
    await machine.until(WAITING)
    assert machine.problems()["secrets_missing"].startswith("web waits for values of KEY")
    assert await machine.put(KEY="one") == ()
    await machine.until(RUNNING)
    assert machine.facts.row.active_revision == 1
    assert machine.given == {"KEY": 1}
    assert "secrets_missing" not in machine.problems()
    assert await machine.events("revision") == []


async def test_the_current_values_resume_it_as_a_revision_of_its_own(machine: Machine) -> None:
    await machine.put(KEY="two")
    await machine.reboot()
    await machine.until(WAITING)
    await machine.put(KEY="two")
    await machine.until(RUNNING)
    assert machine.facts.row.active_revision == 2
    assert machine.given == {"KEY": 2}
    assert machine.facts.stale_secrets == ()
    said = "1 2: its values of KEY are gone; launched with the current ones"
    assert await machine.events("revision") == [said]
    (enclave,) = machine.facts.enclaves
    assert enclave.row.revision == 2
    update = await machine.host.update(NAME, "v2")
    assert (update.status, update.revision) == (UpdateStatus.COMPLETED, 3)


async def test_a_value_that_nobody_knew_resumes_it_too(machine: Machine) -> None:
    await machine.reboot()
    await machine.until(WAITING)
    await machine.put(KEY="another")
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 2}


async def test_it_waits_until_every_value_is_here(machine: Machine) -> None:
    change = Change(secrets={"TOKEN": "t"})
    await machine.host.finish(await machine.host.engine.update(NAME, change, CALLER))
    await machine.put(KEY="two")
    await machine.reboot()
    await machine.until(WAITING)
    await machine.put(KEY="two")
    await machine.stays(WAITING)
    assert machine.problems()["secrets_missing"].startswith("web waits for values of KEY, TOKEN")
    await machine.put(TOKEN="t")
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 2, "TOKEN": 1}


async def test_a_value_that_was_removed_is_not_waited_for_unless_it_is_needed(
    machine: Machine,
) -> None:
    change = Change(secrets={"SPARE": "s"})
    await machine.host.finish(await machine.host.engine.update(NAME, change, CALLER))
    await machine.put(KEY=None, SPARE=None)
    await machine.reboot()
    await machine.stays(WAITING)
    await machine.put(KEY="one")
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 1}


async def test_a_value_of_before_is_enough_for_a_rollback(machine: Machine) -> None:
    change = Change(tag="v2", secrets={"KEY": "two"})
    await machine.host.finish(await machine.host.engine.update(NAME, change, CALLER))
    await machine.reboot()
    await machine.put(KEY="two")
    await machine.until(RUNNING)
    async with asyncio.timeout(20):
        while machine.facts.rollback[0].feasibility is not Feasibility.IMPOSSIBLE:
            await asyncio.sleep(0.05)
    await machine.put(KEY="one")
    assert machine.facts.stale_secrets == ("KEY",)
    update = await machine.host.finish(await machine.host.engine.rollback(NAME, None, CALLER))
    assert (update.status, update.revision) == (UpdateStatus.COMPLETED, 1)
    assert machine.facts.stale_secrets == ()
    assert machine.given == {"KEY": 1}


async def test_a_start_says_what_is_waited_for(machine: Machine) -> None:
    await machine.reboot()
    await machine.until(WAITING)
    with pytest.raises(ConflictError, match="secrets set web") as error:
        await machine.host.engine.start(NAME, CALLER)
    assert error.value.code == "waiting_for_secrets"
    await machine.put(KEY="one")
    await machine.until(RUNNING)
    with pytest.raises(ConflictError, match="runs already"):
        await machine.host.engine.start(NAME, CALLER)


async def test_a_stopped_one_starts_with_the_current_values_if_its_own_are_gone(
    machine: Machine,
) -> None:
    await machine.put(KEY="two")
    await machine.host.engine.stop(NAME, CALLER)
    await machine.until(DeploymentStatus.STOPPED)
    while machine.facts.enclaves:
        await machine.tick()
    await machine.reboot()
    with pytest.raises(RefusedError) as error:
        await machine.host.engine.start(NAME, CALLER)
    assert error.value.code == "secrets_missing"
    await machine.put(KEY="two")
    update = await machine.host.finish(await machine.host.engine.start(NAME, CALLER))
    assert (update.status, update.revision) == (UpdateStatus.COMPLETED, 2)
    assert machine.given == {"KEY": 2}
