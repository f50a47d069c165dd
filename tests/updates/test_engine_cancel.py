"""Cancel and accept: what they are refused with, and that the way back that is named is one."""

from __future__ import annotations

import re

import pytest

from agent.model.ids import DeploymentName
from agent.model.reasons import Strategy
from agent.model.update import Step, UpdateStatus
from agent.updates.errors import ConflictError, RefusedError
from agent.updates.orders import Change
from agent.updates.planner.types import Policy
from agent.updates.snapshot.snapshot import DeploymentFacts
from simulator.instant_host import CALLER, InstantHost, Make, new

NAME = DeploymentName("web")
SLOW = Policy(dwell_s=60, soak_s=60, drain_s=600, stop_grace_s=0)


async def refusal(host: InstantHost, verb: str = "cancel") -> tuple[str, str]:
    with pytest.raises(ConflictError) as refused:
        await getattr(host.engine, verb)(NAME, CALLER)
    return refused.value.code, str(refused.value)


async def at(host: InstantHost, step: Step) -> None:
    def there(facts: DeploymentFacts) -> bool:
        return facts.update is not None and facts.update.step is step

    await host.until(NAME, there)


async def go_back(host: InstantHost, detail: str) -> str:
    """Do what the refusal says; returns the tag that serves then."""
    found = re.search(r"enclave-agent rollback web --to (\S+)$", detail)
    assert found, detail
    update = await host.finish(await host.engine.rollback(NAME, found[1], CALLER))
    assert update.status is UpdateStatus.COMPLETED
    return update.tag


async def test_after_its_completion_a_cancel_is_told_how_to_go_back(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v2")
    code, detail = await refusal(host)
    assert (code, "the last one is completed" in detail) == ("no_update", True)
    assert await go_back(host, detail) == "v1"


async def test_in_a_soak_the_way_back_is_open_at_once(make: Make) -> None:
    host = await make(policy=SLOW)
    await host.deploy(NAME, "v1")
    await host.engine.update(NAME, Change(tag="v2"), CALLER)
    await at(host, Step.SOAK)
    code, detail = await refusal(host)
    assert (code, "wait" in detail) == ("switched", False)
    assert await go_back(host, detail) == "v1"


async def test_a_redeploy_of_one_tag_goes_back_to_the_revision_before(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v1", variables={"COLOUR": "green"})
    _, detail = await refusal(host)
    assert await go_back(host, detail) == "v1"
    assert host.engine.snapshot.deployments[NAME].row.active_revision == 1


@pytest.mark.parametrize("sick", [False, True])
async def test_where_nothing_is_warm_the_way_back_opens_after_the_update(
    make: Make, sick: bool
) -> None:
    """In the soak of a stop_then_start, and where the old one has died."""
    host = await make(policy=SLOW)
    await host.deploy(NAME, "v1")
    strategy = Strategy.BLUE_GREEN if sick else Strategy.STOP_THEN_START
    update = await host.engine.update(NAME, Change(tag="v2", strategy=strategy), CALLER)
    await at(host, Step.SOAK)
    if sick:
        enclaves = host.engine.snapshot.deployments[NAME].enclaves
        host.vms.die(next(one.row.id for one in enclaves if one.row.revision == 1))
    code, detail = await refusal(host)
    assert (code, "wait until the update is completed" in detail) == ("switched", True)
    with pytest.raises(RefusedError, match="another update"):
        await host.engine.rollback(NAME, None, CALLER)
    await host.finish(update)
    assert await go_back(host, detail) == "v1"


async def test_of_a_first_version_there_is_nothing_to_go_back_to(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    code, detail = await refusal(host)
    assert code == "no_update"
    assert "no older version" in detail
    assert detail.endswith("enclave-agent stop web")


async def test_after_a_failure_there_is_nothing_to_cancel(make: Make) -> None:
    host = await make()
    host.releases.broken.add("v1")
    await host.deploy(NAME, "v1")
    assert await refusal(host) == ("no_update", "no update of web is running")


async def test_a_cancel_asked_for_twice_is_one(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    staged = await host.engine.update(NAME, Change(tag="v2", staging=True), CALLER)
    await at(host, Step.ACCEPT)
    first, second = [await host.engine.cancel(NAME, CALLER) for _ in range(2)]
    assert first.id == second.id == staged.id
    assert await refusal(host, "accept") == ("decided", "the update is decided already")
    assert (await host.finish(staged)).status is UpdateStatus.CANCELLED


async def test_an_accept_of_what_does_not_wait_is_refused(make: Make) -> None:
    host = await make(policy=SLOW)
    assert (await host.engine.deploy(new(NAME, "v1"), CALLER)).staging is False
    assert (await refusal(host, "accept"))[0] == "not_staged"
    await host.until(NAME, lambda facts: facts.update is not None and not facts.update.running)
    assert (await refusal(host, "accept"))[0] == "no_update"
    staged = await host.engine.update(NAME, Change(tag="v2", staging=True), CALLER)
    assert (await refusal(host, "accept"))[0] == "not_ready"
    await at(host, Step.ACCEPT)
    assert (await host.engine.accept(NAME, CALLER)).accepted
    await at(host, Step.SOAK)
    assert (await refusal(host, "accept"))[0] == "decided"
    assert (await host.finish(staged)).status is UpdateStatus.COMPLETED
