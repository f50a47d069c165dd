"""A degraded deployment says why: in what is published, and in an event when it is news."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from agent.model.event import Event
from agent.model.reasons import DecidedStrategy, Decision
from agent.model.revision import DeploymentStatus, Fault
from agent.updates.snapshot.rows import read_rows
from agent.updates.snapshot.snapshot import DeploymentFacts
from agent.updates.snapshot.status import deployment_facts
from simulator.simulated_host import NAME, SimulatedHost

SENTENCE = "container web is unhealthy"


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    host.health_fault = Fault(code="container_unhealthy", detail=SENTENCE, probe="containers")
    host.serve("v1")
    yield host
    host.close()


def shown(host: SimulatedHost) -> DeploymentFacts:
    rows = host.read(lambda tx: read_rows(tx, NAME))
    assert rows is not None
    unknown = Decision(strategy=DecidedStrategy.REFUSE)
    return deployment_facts(
        rows, host.observe(), next_update=unknown, rollback=(), missing_secrets=()
    )


def told(host: SimulatedHost) -> list[Event]:
    return [one for one in host.read(lambda tx: tx.events(0)) if one.kind == "health"]


def only(host: SimulatedHost) -> str:
    (row,) = host.read(lambda tx: tx.enclaves())
    return row.id


def test_what_runs_well_has_no_reason(host: SimulatedHost) -> None:
    assert (shown(host).status, shown(host).degraded) == (DeploymentStatus.RUNNING, None)
    assert told(host) == []


def test_a_sick_workload_is_told_in_the_probes_words(host: SimulatedHost) -> None:
    host.set_health(only(host), False)
    host.think()
    facts = shown(host)
    assert facts.status is DeploymentStatus.DEGRADED
    assert facts.degraded is not None
    assert (facts.degraded.detail, facts.degraded.probe) == (SENTENCE, "containers")
    (event,) = told(host)
    assert (event.to, event.reason) == ("degraded", f"container_unhealthy: {SENTENCE}")


def test_the_same_again_is_no_news_and_the_end_of_it_is(host: SimulatedHost) -> None:
    key = only(host)
    host.set_health(key, False)
    host.think()
    host.health_fault = msgspec.structs.replace(host.health_fault, detail="uptime 12 s")
    host.think()
    host.set_health(key, True)
    host.think()
    assert [(one.from_, one.to) for one in told(host)] == [
        ("healthy", "degraded"),
        ("degraded", "healthy"),
    ]
    assert shown(host).degraded is None


def test_a_restart_of_the_agent_neither_forgets_it_nor_tells_it_again(host: SimulatedHost) -> None:
    key = only(host)
    host.set_health(key, False)
    host.think()
    host.crash()
    host.think()
    host.set_health(key, False)
    host.think()
    assert len(told(host)) == 1


def test_a_vm_that_ended_says_how_until_it_serves_again(host: SimulatedHost) -> None:
    host.die(only(host))
    assert (reason := shown(host).degraded) is not None
    assert "ended" in reason.detail
    for _ in range(40):
        plan = host.think()
        facts = shown(host)
        assert (facts.degraded is None) is (facts.status is not DeploymentStatus.DEGRADED)
        assert plan is not None
        for action in plan.actions:
            host.perform(action)
        host.clock.advance(1)
    host.boot_all()
    for _ in range(10):
        plan = host.think()
        assert plan is not None
        for action in plan.actions:
            host.perform(action)
        host.clock.advance(1)
    assert (shown(host).status, shown(host).degraded) == (DeploymentStatus.RUNNING, None)
