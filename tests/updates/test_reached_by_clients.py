"""What follows of it that clients reach what is routed, or do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec
import pytest

from agent.model.enclave import EnclaveState
from agent.model.reasons import Strategy
from agent.model.resources import Listen
from agent.model.revision import DeploymentStatus
from agent.model.update import Step, UpdateStatus
from agent.probes.port import ProbeView
from agent.updates.planner.alarm import Alarm
from agent.updates.planner.health_alarms import health_alarms
from agent.updates.planner.reach import blame
from agent.updates.snapshot.status import enclave_facts
from simulator.simulated_host import LISTEN as AT
from simulator.simulated_host import POLICY, SimulatedHost

DROPPED = "no answer within 5 s"


@pytest.fixture
def new() -> Iterator[SimulatedHost]:
    host = SimulatedHost(asked_from_outside=True)
    yield host
    host.close()


@pytest.fixture
def host(new: SimulatedHost) -> SimulatedHost:
    new.reach = True
    new.serve("v1")
    return new


def warnings(host: SimulatedHost) -> list[str]:
    return [one for one in host.current().warnings if one.startswith("clients")]


def told(host: SimulatedHost) -> dict[str, Alarm]:
    return health_alarms(host.situation())


def state(host: SimulatedHost) -> EnclaveState:
    s = host.situation()
    assert s.deployment.route.enclave is not None
    return enclave_facts(s, s.enclaves[s.deployment.route.enclave]).state


def test_what_clients_do_not_reach_is_not_called_healthy(host: SimulatedHost) -> None:
    assert (host.status(), state(host), told(host)) == (
        DeploymentStatus.RUNNING,
        EnclaveState.RUNNING,
        {},
    )
    host.reach = False
    host.think()
    assert (host.status(), state(host)) == (DeploymentStatus.DEGRADED, EnclaveState.UNHEALTHY)
    assert f"clients do not reach {AT}: {DROPPED}" in told(host)["unreached"].detail
    degraded = host.deployment().degraded
    assert degraded is not None
    assert (degraded.code, degraded.probe) == ("unreachable_by_clients", f"outside {AT}")
    assert host.deployment().health.falls == 1
    host.reach = True
    host.think()
    assert (host.status(), told(host)) == (DeploymentStatus.RUNNING, {})
    assert host.deployment().degraded is None


def test_a_restart_of_the_agent_does_not_call_it_healthy_before_it_knows(
    host: SimulatedHost,
) -> None:
    host.reach = False
    host.think()
    host.crash()
    host.boot_all()
    host.reach = None
    host.think()
    assert host.status() is DeploymentStatus.DEGRADED
    assert host.deployment().degraded is not None
    host.reach = True
    host.think()
    assert host.status() is DeploymentStatus.RUNNING


def test_a_guest_that_hangs_is_one_problem_and_not_two(host: SimulatedHost) -> None:
    (key,) = host.vms
    host.reach = False
    host.set_health(key, False)
    host.think()
    assert told(host).keys() == {"unhealthy"}


def test_it_is_never_ended_for_what_clients_meet_with(host: SimulatedHost) -> None:
    launches = [vm.launch_uuid for vm in host.vms.values()]
    host.reach = False
    host.settle(seconds=7200, step_s=60)
    assert [vm.launch_uuid for vm in host.vms.values()] == launches


def test_a_new_version_that_clients_do_not_reach_as_the_old_one_is_reverted(
    host: SimulatedHost,
) -> None:
    host.request("v2")
    host.until(Step.SOAK)
    host.reach, host.reached_before = False, frozenset({AT})
    host.settle()
    fault = host.current().fault
    assert (host.current().status, host.serving_tag()) == (UpdateStatus.FAILED, "v1")
    assert fault is not None
    assert (fault.code, fault.step) == ("unreachable_by_clients", Step.REVERT)
    assert "by which they reached the version before" in fault.detail


def test_one_that_falters_itself_is_judged_by_that_and_not_by_its_clients(
    host: SimulatedHost,
) -> None:
    """Its VM may have died a moment ago: the clients' probe must not be the first to tell."""
    host.request("v2")
    host.until(Step.SOAK)
    host.reach, host.reached_before = False, frozenset({AT})
    s, update = host.situation(), host.current()
    assert blame(s, update) is not None
    failing = ProbeView(name="http", passing=0, needed=2, failing=1, last="refused")
    falters = msgspec.structs.replace(s.health[update.enclave], probes=(failing,))
    assert blame(dataclasses.replace(s, health={update.enclave: falters}), update) is None
    assert blame(dataclasses.replace(s, health={}), update) is None


@pytest.mark.parametrize(
    ("before", "suspect"), [(frozenset[Listen](), False), (frozenset({AT}), True)]
)
def test_what_the_old_version_suffers_too_fails_no_new_one_and_it_says_so(
    host: SimulatedHost, before: frozenset[Listen], suspect: bool
) -> None:
    host.request("v2")
    host.until(Step.SOAK)
    host.reach, host.reached_before, host.host_suspect = False, before, suspect
    host.settle()
    update = host.current()
    assert (update.status, host.serving_tag()) == (UpdateStatus.COMPLETED, "v2")
    assert warnings(host) == [f"clients do not reach {AT}: {DROPPED}"]
    assert host.status() is DeploymentStatus.DEGRADED


@pytest.mark.parametrize("strategy", [Strategy.BLUE_GREEN, Strategy.STOP_THEN_START])
def test_an_update_waits_a_while_to_know_before_it_is_over(
    host: SimulatedHost, strategy: Strategy
) -> None:
    host.policy = dataclasses.replace(POLICY, soak_s=4, dwell_s=4, outside_patience_s=20)
    host.request("v2", strategy=strategy)
    host.until(Step.SOAK)
    host.reach = None
    host.settle(seconds=10)
    assert host.current().step is Step.SOAK
    host.reach = True
    host.settle()
    assert (host.current().status, warnings(host)) == (UpdateStatus.COMPLETED, [])


@pytest.mark.parametrize("reach", [True, False, None])
def test_so_does_the_first_one_and_it_is_there_whatever_comes_of_it(
    new: SimulatedHost, reach: bool | None
) -> None:
    new.request("v1")
    new.until(Step.SWITCH)
    new.settle(seconds=4)
    assert new.current().step is Step.SWITCH
    new.reach = reach
    new.settle(seconds=60)
    assert new.current().status is UpdateStatus.COMPLETED
    assert bool(warnings(new)) is (reach is False)


def test_what_was_found_under_another_decision_says_nothing(host: SimulatedHost) -> None:
    host.reach = False
    assert host.situation().outside is not None
    assert host.data_plane is not None
    host.data_plane = (host.data_plane[0] - 1, host.data_plane[1])
    assert host.situation().outside is None
    assert host.status() is DeploymentStatus.RUNNING
