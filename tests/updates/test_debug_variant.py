"""A debug variant is a release under a tag of its own; a deployment goes there and back."""

from __future__ import annotations

import msgspec
import pytest

from agent.model.ids import DeploymentName
from agent.model.reasons import ReasonCode
from agent.model.update import UpdateStatus
from agent.updates.errors import RefusedError
from agent.updates.orders import Change, PlanQuestion
from simulator.instant_host import CALLER, InstantHost, Make
from simulator.simulated_host import release

NAME = DeploymentName("web")


async def host_of(make: Make, **size: object) -> InstantHost:
    """Serves v1, which has a debug variant; that of v2 is none, and v3 has none."""
    host = await make(**size)
    host.releases.made["v1-debug"] = msgspec.structs.replace(release("v1-debug"), debug=True)
    host.releases.unknown.add("v3-debug")
    await host.deploy(NAME, "v1")
    return host


async def to(host: InstantHost, **change: object) -> tuple[UpdateStatus, str]:
    update = await host.finish(await host.engine.update(NAME, Change(**change), CALLER))
    return update.status, update.tag


async def test_a_deployment_goes_to_the_variant_and_back(make: Make) -> None:
    host = await host_of(make)
    assert await to(host, debug=True) == (UpdateStatus.COMPLETED, "v1-debug")
    assert await to(host, debug=False) == (UpdateStatus.COMPLETED, "v1")
    assert await to(host, tag="v1", debug=True) == (UpdateStatus.COMPLETED, "v1-debug")
    host.releases.asked.clear()
    assert await to(host, debug=True) == (UpdateStatus.COMPLETED, "v1-debug")
    assert host.releases.asked == []  # what runs is it already: its contents stay
    assert await to(host) == (UpdateStatus.COMPLETED, "v1-debug")  # not said: it is kept


@pytest.mark.parametrize(
    ("tag", "words"),
    [("v3", "there is no debug variant"), ("v2", "v2-debug is no debug release")],
)
async def test_where_there_is_none_it_is_refused_and_said_how_to_make_one(
    make: Make, tag: str, words: str
) -> None:
    host = await host_of(make)
    with pytest.raises(RefusedError, match=words) as refused:
        await host.engine.update(NAME, Change(tag=tag, debug=True), CALLER)
    assert refused.value.code == ReasonCode.RELEASE_INVALID
    planned = await host.engine.plan(PlanQuestion(deployment=NAME, tag=tag, debug=True))
    assert words in planned.reasons[0].detail


async def test_where_evidence_is_demanded_it_is_refused(make: Make) -> None:
    host = await host_of(make)
    host.supply = msgspec.structs.replace(host.supply, evidence_demanded=True)
    with pytest.raises(RefusedError) as refused:
        await host.engine.update(NAME, Change(debug=True, domain="web.example"), CALLER)
    assert refused.value.code == ReasonCode.DEBUG_UNATTESTED


async def test_the_event_of_a_failed_update_says_what_serves(make: Make) -> None:
    host = await host_of(make)
    host.releases.broken.add("v2")
    failed = await host.finish(await host.engine.update(NAME, Change(tag="v2"), CALLER))
    assert failed.status is UpdateStatus.FAILED
    events = [one for one in await host.engine.events(0) if one.update == failed.id]
    assert events[-1].reason == "v1 serves on, nothing changed"
