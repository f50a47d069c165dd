"""What a release's guest will refuse is told before and with its update; the host admits it."""

from __future__ import annotations

import msgspec

from agent.model.ids import DeploymentName
from agent.updates.orders import Change, PlanQuestion
from simulator.instant_host import CALLER, Make, new
from simulator.simulated_host import release

NAME = DeploymentName("web")
TOLD = "the guest will refuse its tinfoil-config.yml: containers[0].ipc: is host"


async def test_the_guests_refusals_are_warnings_of_plan_deploy_and_update(make: Make) -> None:
    host = await make()
    for tag in ("v1", "v2"):
        host.releases.made[tag] = msgspec.structs.replace(release(tag), guest_refusals=(TOLD,))
    first = await host.engine.deploy(new(NAME, "v1"), CALLER)
    assert TOLD in first.warnings
    await host.finish(first)
    planned = await host.engine.plan(PlanQuestion(deployment=NAME, tag="v2"))
    assert not planned.refused
    assert TOLD in planned.warnings
    assert TOLD in (await host.engine.update(NAME, Change(tag="v2"), CALLER)).warnings
    assert TOLD not in (await host.engine.plan(PlanQuestion(deployment=NAME, tag="v3"))).warnings
