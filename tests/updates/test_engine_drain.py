"""What the real engine makes of a drain: no count of before the switch ends it, none is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen, Publish
from agent.model.update import Step, UpdateStatus
from agent.traffic.port import RouteOrder, TrafficError
from agent.updates.orders import Change
from agent.updates.planner.types import Policy
from agent.updates.snapshot.snapshot import DeploymentFacts
from simulator.instant_host import CALLER, InstantHost, Make

NAME = DeploymentName("web")
PUBLISHED = Publish(listen=Listen(address="127.0.0.1", port=9000), guest_port=443)
POLICY = Policy(dwell_s=0, soak_s=0, drain_s=600, stop_grace_s=0)


def draining(facts: DeploymentFacts) -> bool:
    assert facts.update is not None
    assert facts.update.running, "it is over, and what was open was cut untold"
    return facts.update.step is Step.DRAIN


async def counted(host: InstantHost) -> None:
    """As is done now and then."""
    await host.runtime.data_plane.count(host.runtime.publisher.rows.values())


async def test_a_connection_that_came_in_before_the_switch_after_the_last_count_is_drained(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await make(policy=POLICY)
    await host.deploy(NAME, "v1")
    await counted(host)
    apply = host.traffic.apply

    async def one_more_first(order: RouteOrder) -> None:
        host.traffic.open = 1
        await apply(order)

    monkeypatch.setattr(host.traffic, "apply", one_more_first)
    update = await host.engine.update(NAME, Change(tag="v2"), CALLER)
    await host.until(NAME, draining)
    done = await host.finish(update)
    assert (done.status, done.reset_connections) == (UpdateStatus.COMPLETED, 1)


async def test_a_drain_of_nothing_is_over_at_once(make: Make) -> None:
    host = await make(policy=POLICY)
    await host.deploy(NAME, "v1")
    began_s = host.clock.now().boottime_s
    done = await host.update(NAME, "v2")
    assert (done.status, done.reset_connections) == (UpdateStatus.COMPLETED, 0)
    assert host.clock.now().boottime_s - began_s < POLICY.drain_s


async def test_what_was_cut_by_a_try_that_failed_is_counted_with_what_the_next_one_cuts(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await make(policy=replace(POLICY, drain_s=0))
    await host.deploy(NAME, "v1", 8443)
    await host.update(NAME, "v2", publish=(PUBLISHED,))
    host.traffic.open = 1
    answers: list[int | Exception] = [2, TrafficError("a moment's trouble"), 0, 3]

    async def reset(_endpoint: Endpoint) -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(host.traffic, "reset", reset)
    done = await host.update(NAME, "v3")
    assert (done.status, done.reset_connections) == (UpdateStatus.COMPLETED, 5)
    assert answers == []
