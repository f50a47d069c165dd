"""What serves and is not well is a problem with since when; what falls again and again, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.model.clock import Instant
from agent.model.enclave import EnclaveState
from agent.model.revision import DeploymentStatus, Fault, Wish
from agent.updates.planner.health_alarms import health_alarms
from agent.updates.snapshot.status import enclave_facts
from simulator.simulated_host import SimulatedHost

HUNG = Fault(code="unreachable", detail="no answer within 5 s", probe="https /health")


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    host.health_fault = HUNG
    host.serve("v1")
    yield host
    host.close()


def only(host: SimulatedHost) -> str:
    (row,) = host.read(lambda tx: tx.enclaves())
    return row.id


def fall(host: SimulatedHost) -> Instant:
    """It becomes unhealthy; the moment."""
    host.set_health(only(host), False)
    host.think()
    return host.clock.now()


def recover(host: SimulatedHost) -> None:
    host.set_health(only(host), True)
    host.think()


def test_a_hung_enclave_that_clients_are_sent_to_is_a_problem_with_since_when(
    host: SimulatedHost,
) -> None:
    began = fall(host)
    host.clock.advance(300)
    host.think()
    alarm = health_alarms(host.situation())["unhealthy"]
    assert (alarm.code, alarm.severity, alarm.since) == ("unhealthy", "error", began)
    assert "probe https /health: no answer within 5 s" in alarm.detail
    assert "relaunch_unhealthy_after_s" in alarm.mend
    recover(host)
    assert health_alarms(host.situation()) == {}


def test_after_a_restart_of_the_agent_it_is_the_same_problem_since_the_same_moment(
    host: SimulatedHost,
) -> None:
    began = fall(host)
    host.clock.advance(60)
    host.crash()
    host.think()
    for known in (None, False):
        host.vms[only(host)].booted = False  # the guest that hangs tells nobody that it had booted
        host.vms[only(host)].healthy = known
        host.think()
        s = host.situation()
        assert health_alarms(s)["unhealthy"].since == began
        assert "no answer within 5 s" in health_alarms(s)["unhealthy"].detail
        assert host.status() is DeploymentStatus.DEGRADED
    facts = enclave_facts(host.situation(), host.situation().enclaves[only(host)])
    assert facts.state is EnclaveState.UNHEALTHY


def test_what_was_well_before_a_restart_is_not_suspected(host: SimulatedHost) -> None:
    host.crash()
    host.think()
    assert health_alarms(host.situation()) == {}
    assert host.status() is DeploymentStatus.RUNNING


def test_falls_are_counted_with_their_moments_and_many_are_a_problem_until_they_are_old(
    host: SimulatedHost,
) -> None:
    moments = []
    for number in range(1, 4):
        moments.append(fall(host))
        recover(host)
        host.clock.advance(100)
        assert ("flapping" in health_alarms(host.situation())) is (number == 3)
    host.crash()
    host.boot_all()
    plan = host.think()
    record = host.deployment().health
    assert (record.falls, list(record.fell_at)) == (3, moments)
    alarm = health_alarms(host.situation())["flapping"]
    assert (alarm.severity, alarm.since) == ("warning", moments[2])
    assert "3 times within 30 min" in alarm.detail
    assert plan is not None
    assert plan.wake_at is not None  # to be told of no more, without anything else happening
    host.clock.advance(plan.wake_at.boottime_s - host.clock.now().boottime_s)
    assert health_alarms(host.situation()) == {}
    assert host.deployment().health.falls == 3


def test_another_version_does_not_inherit_that_it_flaps(host: SimulatedHost) -> None:
    for _ in range(3):
        fall(host)
        recover(host)
    host.serve("v2")
    assert health_alarms(host.situation()) == {}
    fall(host)
    assert host.deployment().health.falls == 4
    assert len(host.deployment().health.fell_at) == 1


def test_what_is_not_to_run_is_no_problem(host: SimulatedHost) -> None:
    fall(host)
    host.wish(Wish.STOP)
    assert health_alarms(host.situation()) == {}
