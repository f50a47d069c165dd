"""Where a rollback goes: to the version before, never back to what somebody went back from."""

from __future__ import annotations

import pytest

from agent.model.ids import DeploymentName
from agent.model.reasons import Strategy
from agent.model.update import UpdateStatus
from agent.updates.errors import ConflictError
from agent.updates.orders import Change
from agent.updates.planner.types import Policy
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.simulated_host import release

NAME = DeploymentName("web")
TAGS = ("v1", "v2", "v3", "v4")


async def served(make: Make, *tags: str) -> InstantHost:
    """A host whose deployment came to serve these tags, one after the other."""
    host = await make(policy=Policy(dwell_s=0, soak_s=5, drain_s=0, stop_grace_s=0))
    for tag in TAGS:
        host.releases.made[tag] = release(tag)
    await host.finish(await host.engine.deploy(new(NAME, tags[0]), CALLER))
    for tag in tags[1:]:
        await host.update(NAME, tag)
    return host


async def back(host: InstantHost, to: str | int | None = None) -> str:
    update = await host.finish(await host.engine.rollback(NAME, to, CALLER))
    assert update.status is UpdateStatus.COMPLETED
    return update.tag


async def shown(host: InstantHost) -> tuple[list[str], str | None]:
    """The tags that are offered, and the one that a rollback goes to by itself."""
    options = (await host.runtime.forecaster.make()).rollback[NAME]
    by_itself = [one.tag for one in options if one.default]
    assert len(by_itself) <= 1
    assert by_itself == [one.tag for one in options[: len(by_itself)]], "it is listed first"
    return [one.tag for one in options], by_itself[0] if by_itself else None


async def test_two_rollbacks_go_two_versions_back(make: Make) -> None:
    host = await served(make, "v1", "v2", "v3")
    assert await shown(host) == (["v2", "v1"], "v2")
    assert await back(host) == "v2"
    assert await shown(host) == (["v1", "v3"], "v1")
    assert await back(host) == "v1"


async def test_what_was_rolled_back_from_is_gone_to_only_by_name(make: Make) -> None:
    host = await served(make, "v1", "v2")
    assert await back(host) == "v1"
    assert await shown(host) == (["v2"], None)
    with pytest.raises(
        ConflictError, match=r"before this one.*rollback web --to 2 \(v2\)"
    ) as told:
        await host.engine.rollback(NAME, None, CALLER)
    assert told.value.code == "nothing_to_roll_back_to"
    assert await back(host, "v2") == "v2"
    assert await shown(host) == (["v1"], "v1")


async def test_an_update_after_a_rollback_has_what_served_before_it(make: Make) -> None:
    host = await served(make, "v1", "v2")
    await back(host)
    await host.update(NAME, "v3")
    assert await shown(host) == (["v1", "v2"], "v1")
    assert await back(host) == "v1"


async def test_an_update_to_an_older_tag_is_a_way_back_too(make: Make) -> None:
    host = await served(make, "v1", "v2", "v3", "v2")
    assert await shown(host) == (["v1", "v3"], "v1")


async def test_what_was_stopped_for_a_version_that_failed_is_what_served_before(
    make: Make,
) -> None:
    host = await served(make, "v1", "v2")
    host.vms.failing.add("v3")
    update = await host.update(NAME, "v3", strategy=Strategy.STOP_THEN_START)
    assert update.status is UpdateStatus.FAILED
    assert await shown(host) == (["v2", "v1"], "v2")
    assert await back(host) == "v2"
    assert await shown(host) == (["v1"], "v1")


async def test_while_it_is_warm_the_old_version_takes_the_traffic_back_and_is_left_behind(
    make: Make,
) -> None:
    host = await served(make, "v1", "v2")
    await host.engine.update(NAME, Change(tag="v3"), CALLER)
    await host.until(NAME, lambda facts: facts.update is not None and facts.update.step == "soak")
    assert await shown(host) == (["v2", "v1"], "v2")
    assert await back(host) == "v2"
    assert await shown(host) == (["v1", "v3"], "v1")


async def test_a_change_of_the_same_tag_is_a_version_of_its_own(make: Make) -> None:
    host = await served(make, "v1")
    change = Change(variables={"LEVEL": "debug"})
    await host.finish(await host.engine.update(NAME, change, CALLER))
    update = await host.finish(await host.engine.rollback(NAME, None, CALLER))
    assert update.revision == 1


async def test_an_older_tag_with_other_variables_goes_back_to_that_tag_as_it_was(
    make: Make,
) -> None:
    host = await served(make, "v1", "v2")
    change = Change(tag="v1", variables={"LEVEL": "debug"})
    await host.finish(await host.engine.update(NAME, change, CALLER))
    update = await host.finish(await host.engine.rollback(NAME, None, CALLER))
    assert (update.revision, update.tag) == (1, "v1")


async def test_a_version_that_never_came_to_serve_is_no_place_to_go_back_to(make: Make) -> None:
    host = await served(make, "v1", "v2")
    host.vms.failing.add("v3")
    failed = await host.finish(await host.engine.update(NAME, Change(tag="v3"), CALLER))
    assert failed.status is UpdateStatus.FAILED
    host.vms.failing.clear()
    assert await shown(host) == (["v1"], "v1")
    for to in ("v3", 3, "3"):
        with pytest.raises(ConflictError, match=r"revision 3 \(v3\) of web never served") as told:
            await host.engine.rollback(NAME, to, CALLER)
        assert told.value.code == "never_served"
