"""What the real engine refuses while the host drains or an update runs, and what it lets go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec
import pytest

from agent.capacity.supply import vm_memory_mib
from agent.model.ids import DeploymentName
from agent.model.reasons import DowntimeEstimate, ReasonCode, Strategy
from agent.model.resources import Listen, Publish
from agent.model.revision import DeploymentStatus
from agent.model.update import Step, Update, UpdateStatus
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.port import Traffic
from agent.traffic.userspace import UserspaceTraffic
from agent.updates.errors import ConflictError, FieldError, RefusedError
from agent.updates.orders import Change, PlanQuestion
from agent.updates.snapshot.snapshot import DeploymentFacts
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.simulated_host import release

NAME, OTHER = DeploymentName("web"), DeploymentName("other")
STOP = Strategy.STOP_THEN_START

Ask = Callable[[InstantHost], Awaitable[object]]


def at(step: Step) -> Callable[[DeploymentFacts], bool]:
    return lambda facts: facts.update is not None and facts.update.step is step


async def refusal(asked: Awaitable[object]) -> ReasonCode:
    with pytest.raises(RefusedError) as refused:
        await asked
    return refused.value.decision.reasons[0].code


async def conflict(asked: Awaitable[object]) -> str:
    with pytest.raises(ConflictError) as refused:
        await asked
    return refused.value.code


async def has_two_versions(host: InstantHost) -> None:
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v2")


async def has_failed(host: InstantHost) -> None:
    await host.deploy(NAME, "v1")
    host.releases.broken.add("v2")
    await host.update(NAME, "v2")


async def is_stopped(host: InstantHost) -> None:
    await host.deploy(NAME, "v1")
    await host.engine.stop(NAME, CALLER)
    await host.until(NAME, lambda facts: facts.enclaves == ())


async def is_new(host: InstantHost) -> None: ...


ASKED: dict[str, tuple[Callable[[InstantHost], Awaitable[None]], Ask]] = {
    "deploy": (is_new, lambda host: host.engine.deploy(new(NAME, "v1"), CALLER)),
    "update": (
        has_two_versions,
        lambda host: host.engine.update(NAME, Change(tag="v3"), CALLER),
    ),
    "rollback": (has_two_versions, lambda host: host.engine.rollback(NAME, None, CALLER)),
    "retry": (has_failed, lambda host: host.engine.retry(NAME, CALLER)),
    "start": (is_stopped, lambda host: host.engine.start(NAME, CALLER)),
}


@pytest.mark.parametrize("verb", ASKED)
async def test_a_drained_host_admits_nothing_until_it_is_undrained(make: Make, verb: str) -> None:
    become, ask = ASKED[verb]
    host = await make()
    await become(host)
    running = set(host.vms.running)
    await host.engine.drain(CALLER)
    assert host.engine.snapshot.host.draining
    assert await refusal(ask(host)) is ReasonCode.HOST_DRAINING
    assert set(host.vms.running) == running
    await host.engine.undrain(CALLER)
    host.releases.broken.clear()
    done = await host.finish(cast(Update, await ask(host)))
    assert done.status is UpdateStatus.COMPLETED


async def test_what_runs_when_a_drain_begins_goes_on(make: Make) -> None:
    """An update to its end, enclaves that serve, and the relaunch of one that ends."""
    host = await make()
    await host.deploy(OTHER, "v1", port=9443)
    await host.deploy(NAME, "v1")
    staged = await host.engine.update(NAME, Change(tag="v2", staging=True), CALLER)
    await host.until(NAME, at(Step.ACCEPT))
    await host.engine.drain(CALLER)
    await host.engine.accept(NAME, CALLER)
    assert (await host.finish(staged)).status is UpdateStatus.COMPLETED
    (row,) = [one.row for one in host.engine.snapshot.deployments[OTHER].enclaves]
    host.vms.die(row.id)

    def relaunched(facts: DeploymentFacts) -> bool:
        (now,) = [one.row for one in facts.enclaves]
        again = now.launch_uuid != row.launch_uuid
        return again and facts.status is DeploymentStatus.RUNNING

    await host.until(OTHER, relaunched)
    for name in (NAME, OTHER):
        facts = host.engine.snapshot.deployments[name]
        assert facts.status is DeploymentStatus.RUNNING
        (binding,) = host.traffic.orders[name].bindings
        assert binding.endpoints


async def test_a_drain_is_in_force_still_after_a_restart_of_the_agent(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    await host.engine.drain(CALLER)
    await host.restart()
    assert host.engine.snapshot.host.draining
    asked = host.engine.update(NAME, Change(tag="v2"), CALLER)
    assert await refusal(asked) is ReasonCode.HOST_DRAINING


GUARDED: dict[str, tuple[Ask, str]] = {
    "stop": (lambda host: host.engine.stop(NAME, CALLER), "update_in_progress"),
    "delete": (lambda host: host.engine.delete(NAME, CALLER), "update_in_progress"),
    "retry": (lambda host: host.engine.retry(NAME, CALLER), "nothing_to_retry"),
    "start": (lambda host: host.engine.start(NAME, CALLER), "running"),
}


@pytest.mark.parametrize("verb", GUARDED)
async def test_while_an_update_runs_its_deployment_is_left_alone(make: Make, verb: str) -> None:
    ask, code = GUARDED[verb]
    host = await make()
    await host.deploy(NAME, "v1")
    staged = await host.engine.update(NAME, Change(tag="v2", staging=True), CALLER)
    await host.until(NAME, at(Step.ACCEPT))
    assert await conflict(ask(host)) == code
    for asked in (
        host.engine.update(NAME, Change(tag="v3"), CALLER),
        host.engine.rollback(NAME, "v1", CALLER),
    ):
        assert await refusal(asked) is ReasonCode.UPDATE_IN_PROGRESS
    await host.engine.accept(NAME, CALLER)
    assert (await host.finish(staged)).status is UpdateStatus.COMPLETED


async def test_of_two_updates_at_once_exactly_one_is_admitted(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    for tag in range(2, 12):
        asked = [
            host.engine.update(NAME, Change(tag=f"v{tag}-{who}", secrets={"K": who}), CALLER)
            for who in "ab"
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        (made,) = [one for one in answers if isinstance(one, Update)]
        (refused,) = [one for one in answers if isinstance(one, RefusedError)]
        assert refused.code == "update_in_progress"
        assert (await host.finish(made)).status is UpdateStatus.COMPLETED
        assert host.engine.snapshot.deployments[NAME].stale_secrets == ()


async def test_writable_volumes_are_never_attached_to_two(make: Make) -> None:
    host = await make()
    for tag in ("v1", "v2"):
        made = release(tag)
        demand = msgspec.structs.replace(made.demand, writable_volumes=1)
        host.releases.made[tag] = msgspec.structs.replace(made, demand=demand)
    await host.deploy(NAME, "v1")
    update = await host.update(NAME, "v2")
    assert (update.strategy, update.status) == (STOP, UpdateStatus.COMPLETED)
    assert [one.code for one in update.reasons] == [ReasonCode.VOLUME_EXCLUSIVE]
    insisting = Change(tag="v1", strategy=Strategy.BLUE_GREEN)
    with pytest.raises(RefusedError) as refused:
        await host.engine.update(NAME, insisting, CALLER)
    assert ReasonCode.VOLUME_EXCLUSIVE in [one.code for one in refused.value.reasons]
    staged = host.engine.update(NAME, Change(tag="v1", staging=True), CALLER)
    assert await refusal(staged) is ReasonCode.STAGING_NEEDS_BLUE_GREEN


IPV6 = Listen(address="::1", port=8443)
PLANES: list[type[Traffic]] = [NftablesTraffic, HaproxyTraffic, UserspaceTraffic]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("field", ["listen", "publish[0]"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_listener_that_the_data_plane_does_not_serve_is_refused_by_its_field(
    make: Make, plane: type[Traffic], field: str, first: bool
) -> None:
    """In a first deployment and in an update; by nftables alone."""
    host = await make()
    host.traffic.refusal = plane.__new__(plane).refusal
    publish = (Publish(listen=msgspec.structs.replace(IPV6, port=9000), guest_port=443),)
    options = {"listen": IPV6} if field == "listen" else {"publish": publish}

    async def ask() -> Update:
        if first:
            return await host.engine.deploy(new(NAME, "v1", **options), CALLER)
        return await host.engine.update(NAME, Change(tag="v2", **options), CALLER)

    if not first:
        await host.deploy(NAME, "v1")
    if plane is NftablesTraffic:
        with pytest.raises(FieldError, match="IPv6") as error:
            await ask()
        assert error.value.path == field
    else:
        assert (await host.finish(await ask())).status is UpdateStatus.COMPLETED
        bindings = host.traffic.orders[NAME].bindings
        assert any(one.listen.is_ipv6 for one in bindings)


async def test_a_measured_downtime_is_the_next_estimate(make: Make) -> None:
    """Of this deployment, and of others on this host that have none of their own."""
    host = await make()
    host.supply = msgspec.structs.replace(host.supply, memory_mib=2 * vm_memory_mib(256))
    await host.deploy(OTHER, "v1", port=9443)
    await host.deploy(NAME, "v1")
    assert (await estimate(host, NAME)).samples == 0
    host.vms.stopping = lambda: host.clock.advance(7)
    measured = []
    for tag in ("v2", "v3"):
        update = await host.update(NAME, tag)
        assert update.strategy is STOP
        assert update.downtime_s is not None
        measured.append(update.downtime_s)
    assert min(measured) >= 7
    for name in (NAME, OTHER):
        known = await estimate(host, name)
        assert known.samples == 2
        assert min(measured) <= known.p50 <= max(measured)


async def estimate(host: InstantHost, name: DeploymentName) -> DowntimeEstimate:
    decision = await host.engine.plan(PlanQuestion(deployment=name, tag="v4"))
    assert str(decision.strategy) == str(STOP)
    assert decision.downtime_estimate_s is not None
    return decision.downtime_estimate_s
