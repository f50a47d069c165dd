"""What is told of a release's guest: what it will refuse, whose it is and what it runs."""

from __future__ import annotations

import msgspec

from agent.api.views import deployment_view
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


async def test_whose_guest_it_is_and_what_it_runs_is_known_from_its_release(make: Make) -> None:
    host = await make()
    image = "registry.test/web@sha256:" + "1" * 64
    host.releases.made["v1"] = msgspec.structs.replace(
        release("v1"), container_names=("web",), container_images=(image,), cvm_version="v0.12.3"
    )
    await host.finish(await host.engine.deploy(new(NAME, "v1"), CALLER))
    facts = host.engine.snapshot.deployments[NAME]
    (shown,) = deployment_view(facts, host.clock.now()).enclaves
    assert shown.guest == "tinfoilsh/cvmimage 0.12.3"
    assert [(one.name, one.image, one.state) for one in shown.containers] == [("web", image, None)]
