"""The soak guards to its end: nothing is given up while the newest answers are failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec
import pytest

from agent.model.reasons import Strategy
from agent.model.update import Step, UpdateStatus
from agent.probes.port import HealthView, ProbeView
from agent.updates.planner.plan import plan
from agent.updates.planner.types import Situation
from simulator.simulated_host import SimulatedHost

FAILING = ProbeView(name="http", passing=0, needed=2, failing=1, last="HTTP 503")
PASSING = ProbeView(name="http", passing=2, needed=2, failing=0, last="HTTP 200")


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    host.serve("v1")
    yield host
    host.close()


def at_its_end(host: SimulatedHost, strategy: Strategy) -> Situation:
    """The time of the soak is over in a moment."""
    host.request("v2", strategy=strategy)
    host.until(Step.SOAK)
    host.clock.advance(host.policy.soak_s)
    return host.situation()


def with_health(s: Situation, host: SimulatedHost, health: HealthView | None) -> Situation:
    enclave = host.current().enclave
    others = {key: one for key, one in s.health.items() if key != enclave}
    return dataclasses.replace(s, health=others | ({enclave: health} if health else {}))


@pytest.mark.parametrize("strategy", [Strategy.BLUE_GREEN, Strategy.STOP_THEN_START])
def test_failing_answers_extend_it_to_a_verdict(host: SimulatedHost, strategy: Strategy) -> None:
    s = at_its_end(host, strategy)
    known = s.health[host.current().enclave]
    well = msgspec.structs.replace(known, probes=(PASSING,))
    falters = msgspec.structs.replace(known, probes=(PASSING, FAILING))
    waits = plan(with_health(s, host, falters))
    assert waits.write is None
    assert waits.wake_at is not None, "an answer that changes no verdict rings no bell"
    unasked = msgspec.structs.replace(known, healthy=None, probes=())
    for unknown in (unasked, None):
        assert plan(with_health(s, host, unknown)).write is None, "it waits to know"
    assert plan(with_health(s, host, well)).write is not None, "it goes on"


def test_the_verdict_against_it_sends_it_back(host: SimulatedHost) -> None:
    at_its_end(host, Strategy.BLUE_GREEN)
    host.vms[host.current().enclave].healthy = False
    host.settle()
    assert (host.current().status, host.serving_tag()) == (UpdateStatus.FAILED, "v1")
