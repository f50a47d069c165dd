"""Values are gone after a reboot: whatever is supplied then, the deployment comes up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.model.revision import DeploymentStatus
from agent.model.update import UpdateStatus
from agent.updates.errors import ConflictError, RefusedError
from agent.updates.snapshot.snapshot import Feasibility
from simulator.instant_host import CALLER
from tests.fakes.sealed_machine import NAME, RUNNING, WAITING, SealedMachine


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[SealedMachine]:
    machine = SealedMachine(tmp_path)
    await machine.deploy()
    yield machine
    await machine.host.runtime.close()


async def test_what_the_enclave_was_given_resumes_it_although_newer_ones_were_recorded(
    machine: SealedMachine,
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


async def test_the_current_values_resume_it_as_a_revision_of_its_own(
    machine: SealedMachine,
) -> None:
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


async def test_a_value_that_nobody_knew_resumes_it_too(machine: SealedMachine) -> None:
    await machine.reboot()
    await machine.until(WAITING)
    await machine.put(KEY="another")
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 2}


async def test_it_waits_until_every_value_is_here(machine: SealedMachine) -> None:
    await machine.update(secrets={"TOKEN": "t"})
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
    machine: SealedMachine,
) -> None:
    await machine.update(secrets={"SPARE": "s"})
    await machine.put(KEY=None, SPARE=None)
    await machine.reboot()
    await machine.stays(WAITING)
    await machine.put(KEY="one")
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 1}


async def test_a_value_of_before_is_enough_for_a_rollback(machine: SealedMachine) -> None:
    await machine.update(tag="v2", secrets={"KEY": "two"})
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


async def test_a_start_says_what_is_waited_for(machine: SealedMachine) -> None:
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
    machine: SealedMachine,
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
