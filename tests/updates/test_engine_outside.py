"""The engine has listeners asked from outside while they lead somewhere, and heeds the answers."""

from __future__ import annotations

from agent.model.ids import DeploymentName
from agent.model.resources import Publish
from agent.model.revision import DeploymentStatus, ProbeOptions
from agent.model.update import UpdateStatus
from agent.updates.orders import Change
from simulator.instant_host import CALLER, InstantHost, Make, new

NAME = DeploymentName("hello")


def asked(host: InstantHost) -> list[tuple[str, bool, str | None]]:
    return [
        (str(one.listen), one.tls, one.server_name) for one in host.outside.targets[NAME].listeners
    ]


def problems(host: InstantHost) -> set[str]:
    return {one.code for one in host.engine.snapshot.problems}


async def test_every_listener_of_what_serves_is_asked_by_the_name_that_clients_use(
    make: Make,
) -> None:
    host = await make()
    publish = (Publish.parse("127.0.0.1:8080:443"),)
    order = new(NAME, "v1", publish=publish, probes=ProbeOptions(host="web.example:8443"))
    await host.finish(await host.engine.deploy(order, CALLER))
    assert asked(host) == [
        ("127.0.0.1:8443", True, "web.example"),
        ("127.0.0.1:8080", True, "web.example"),
    ]
    await host.update(NAME, "v2")
    enclaves = [one.enclave for one in host.outside.asked]
    assert len(enclaves) == len(set(enclaves)) == 2


async def test_what_is_found_wakes_the_deployment_and_is_told_until_it_is_over(
    make: Make,
) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    host.outside.tell(False)
    await host.until(NAME, lambda facts: facts.status is DeploymentStatus.DEGRADED)
    facts = host.engine.snapshot.deployments[NAME]
    assert [one.reached for one in facts.outside] == [False]
    assert [one.healthy for one in facts.enclaves] == [False]
    assert "unreachable" in problems(host)
    host.outside.tell(True)
    await host.until(NAME, lambda facts: facts.status is DeploymentStatus.RUNNING)
    assert problems(host) == set()


async def test_nobody_asks_for_what_is_stopped_or_deleted(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    await host.engine.stop(NAME, CALLER)
    await host.until(NAME, lambda _: not host.outside.targets)
    await host.engine.delete(NAME, CALLER)
    assert NAME not in host.outside.targets


async def test_an_update_says_what_clients_meet_with(make: Make) -> None:
    host = await make()
    host.outside.tell(False)
    update = await host.finish(await host.engine.deploy(new(NAME, "v1"), CALLER))
    assert update.status is UpdateStatus.COMPLETED
    assert "clients do not reach 127.0.0.1:8443: no answer" in update.warnings
    again = await host.finish(await host.engine.update(NAME, Change(tag="v2"), CALLER))
    assert (again.status, again.fault) == (UpdateStatus.COMPLETED, None)
