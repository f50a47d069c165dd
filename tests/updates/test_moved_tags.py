"""A change is decided on what is here: recorded contents stay, and moved tags are named."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy
from agent.model.revision import Revision
from agent.model.update import UpdateStatus
from agent.releases.port import ReleaseSourceError
from agent.store.port import Reader
from agent.updates.errors import AbandonedError, ConflictError, RefusedError
from agent.updates.orders import Change, NewLease, PlanQuestion
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.simulated_host import release

NAME = DeploymentName("web")
OLD, MOVED = "v1".ljust(64, "0"), "c0ffee".ljust(64, "1")


@pytest.fixture
async def host(make: Make) -> InstantHost:
    """Serves v1, whose contents at the source are others by now."""
    host = await make()
    await host.deploy(NAME, "v1")
    host.releases.made["v1"] = msgspec.structs.replace(release("v1"), digest=MOVED)
    host.releases.asked.clear()
    return host


async def serving(host: InstantHost) -> Revision:
    def read(tx: Reader) -> Revision | None:
        deployment = tx.deployment(NAME)
        return tx.revision(NAME, deployment.active_revision or 0) if deployment else None

    found = await host.runtime.parts.store.read(read)
    assert found is not None
    return found


async def served(host: InstantHost) -> str:
    return (await serving(host)).release_digest


async def test_a_change_without_a_tag_keeps_the_contents_and_asks_no_source(
    host: InstantHost,
) -> None:
    host.releases.answers.clear()
    host.releases.unknown.add("v1")
    change = Change(variables={"A": "1"})
    done = await host.finish(await host.engine.update(NAME, change, CALLER))
    assert done.status is UpdateStatus.COMPLETED
    assert not any("contents" in warning for warning in done.warnings)
    assert await served(host) == OLD
    decision = await host.engine.plan(PlanQuestion(deployment=NAME, variables=("A",)))
    assert decision.strategy is DecidedStrategy.BLUE_GREEN
    await host.engine.leases.grant(NewLease(deployment=NAME, ttl_s=60), CALLER)
    assert host.releases.asked == []


async def test_contents_that_moved_are_refused_by_name_and_a_plan_says_so(
    host: InstantHost,
) -> None:
    with pytest.raises(RefusedError) as refused:
        await host.engine.update(NAME, Change(tag="v1", variables={"A": "1"}), CALLER)
    assert refused.value.code == "tag_moved"
    for part in (OLD[:12], MOVED[:12], "--accept-moved-tag"):
        assert part in str(refused.value)
    planned = await host.engine.plan(PlanQuestion(deployment=NAME, tag="v1"))
    assert planned.strategy is DecidedStrategy.REFUSE
    assert planned.reasons == refused.value.reasons
    assert await served(host) == OLD


async def test_accepted_ones_are_taken_with_a_warning_and_are_what_is_recorded_then(
    host: InstantHost,
) -> None:
    question = PlanQuestion(deployment=NAME, tag="v1", accept_moved_tag=True)
    planned = await host.engine.plan(question)
    assert planned.strategy is DecidedStrategy.BLUE_GREEN
    done = await host.update(NAME, "v1", accept_moved_tag=True)
    assert done.status is UpdateStatus.COMPLETED
    assert planned.warnings == done.warnings
    assert OLD[:12] in done.warnings[0]
    assert await served(host) == MOVED
    again = await host.update(NAME, "v1")
    assert not any("contents" in warning for warning in again.warnings)


async def test_a_tag_that_served_before_is_held_against_what_was_taken_then(
    host: InstantHost,
) -> None:
    await host.update(NAME, "v2")
    with pytest.raises(RefusedError) as refused:
        await host.engine.update(NAME, Change(tag="v1"), CALLER)
    assert refused.value.code == "tag_moved"
    back = await host.finish(await host.engine.rollback(NAME, "v1", CALLER))
    assert back.status is UpdateStatus.COMPLETED
    assert await served(host) == OLD


async def test_a_rollback_to_contents_of_before_keeps_them_against_the_newer_ones(
    host: InstantHost,
) -> None:
    await host.update(NAME, "v1", accept_moved_tag=True)
    await host.finish(await host.engine.rollback(NAME, None, CALLER))
    assert await served(host) == OLD
    with pytest.raises(RefusedError) as refused:
        await host.engine.update(NAME, Change(tag="v1"), CALLER)
    assert refused.value.code == "tag_moved"


async def waiting(host: InstantHost, tag: str) -> None:
    """Until the source was asked."""
    async with asyncio.timeout(30):
        while tag not in host.releases.asked:
            await asyncio.sleep(0)


async def test_nothing_else_of_the_deployment_waits_for_a_slow_source(host: InstantHost) -> None:
    host.releases.answers.clear()
    slow = asyncio.create_task(host.engine.update(NAME, Change(tag="v2"), CALLER))
    await waiting(host, "v2")
    assert await host.engine.set_secrets(NAME, {"KEY": "value"}, CALLER) == ("KEY",)
    change = Change(variables={"A": "1"})
    done = await host.finish(await host.engine.update(NAME, change, CALLER))
    assert done.status is UpdateStatus.COMPLETED
    host.releases.answers.set()
    last = await host.finish(await slow)
    assert (last.status, last.tag) == (UpdateStatus.COMPLETED, "v2")
    revision = await serving(host)
    assert revision.variables == {"A": "1"}, "a change of what was there by then"


async def test_a_cancel_reaches_what_is_not_admitted_yet(host: InstantHost) -> None:
    host.releases.answers.clear()
    slow = asyncio.create_task(host.engine.update(NAME, Change(tag="v2"), CALLER))
    await waiting(host, "v2")
    assert await host.engine.cancel(NAME, CALLER) is None
    with pytest.raises(ConflictError) as cancelled:
        await slow
    assert cancelled.value.code == "cancelled"
    host.releases.answers.set()
    with pytest.raises(ConflictError) as none:
        await host.engine.cancel(NAME, CALLER)
    assert none.value.code == "no_update"
    assert await served(host) == OLD


async def test_a_deployment_to_come_is_called_off_like_an_update(make: Make) -> None:
    host = await make()
    host.releases.answers.clear()
    slow = asyncio.create_task(host.engine.deploy(new(NAME, "v1"), CALLER))
    await waiting(host, "v1")
    assert await host.engine.cancel(NAME, CALLER) is None
    with pytest.raises(ConflictError):
        await slow
    assert NAME not in host.engine.snapshot.deployments


@pytest.mark.parametrize("release_is_known", [False, True])
async def test_a_request_whose_client_has_gone_is_dropped(
    host: InstantHost, release_is_known: bool
) -> None:
    before = await host.engine.updates(NAME)
    gone = asyncio.Event()
    caller = msgspec.structs.replace(CALLER, gone=gone)
    change = Change() if release_is_known else Change(tag="v2")
    if release_is_known:
        gone.set()
    else:
        host.releases.answers.clear()
    asking = asyncio.create_task(host.engine.update(NAME, change, caller))
    if not release_is_known:
        await waiting(host, "v2")
        gone.set()
    with pytest.raises(AbandonedError):
        await asking
    host.releases.answers.set()
    assert (await serving(host)).number == 1
    assert await host.engine.updates(NAME) == before


async def test_what_the_source_says_goes_through(host: InstantHost) -> None:
    async def away(*_: object) -> None:
        raise ReleaseSourceError("the source does not answer")

    host.releases.require_signed = away  # type: ignore[method-assign]
    with pytest.raises(ReleaseSourceError):
        await host.engine.update(NAME, Change(tag="v2"), CALLER)
