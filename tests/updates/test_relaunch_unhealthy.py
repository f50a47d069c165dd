"""What stays unhealthy is ended and launched again, where the configuration asks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from agent.model.event import Event
from agent.model.revision import DeploymentStatus, Fault, Wish
from agent.model.update import Step
from agent.updates.planner.alarms import Alarm, alarms
from agent.updates.planner.health_alarms import health_alarms
from agent.updates.planner.types import ActionKind
from simulator.simulated_host import POLICY, SimulatedHost

AFTER_S = 60.0
ASKED = dataclasses.replace(POLICY, relaunch_unhealthy_after_s=AFTER_S)


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost(policy=ASKED)
    host.health_fault = Fault(code="unreachable", detail="no answer within 5 s", probe="https /")
    host.serve("v1")
    yield host
    host.close()


def launch_of(host: SimulatedHost) -> str | None:
    return next((vm.launch_uuid for vm in host.vms.values()), None)


def seconds_until_relaunch(host: SimulatedHost, at_most_s: float = 4000) -> float | None:
    """None: it is not launched again in that time. Moments at which nothing is due are skipped."""
    before, began = launch_of(host), host.clock.now()
    while (passed := host.clock.now().since(began) or 0.0) < at_most_s:
        host.settle(seconds=2, step_s=1)
        if launch_of(host) not in (before, None):
            return passed
        plan = host.think()
        if plan is not None and not plan.actions:
            wake_at = plan.wake_at or began.plus(at_most_s)
            left_s = min(wake_at, began.plus(at_most_s), key=lambda at: at.boottime_s)
            host.clock.advance(max(0.0, left_s.boottime_s - host.clock.now().boottime_s))
    return None


def told(host: SimulatedHost) -> dict[str, Alarm]:
    return alarms(host.situation()) | health_alarms(host.situation())


def events(host: SimulatedHost, kind: str) -> list[Event]:
    return [one for one in host.read(lambda tx: tx.events(0)) if one.kind == kind]


def test_it_is_launched_again_after_the_time_and_serves_when_it_is_well(
    host: SimulatedHost,
) -> None:
    host.sick_tags.add("v1")
    assert seconds_until_relaunch(host) == pytest.approx(AFTER_S, abs=3)
    host.sick_tags.clear()
    host.settle(seconds=10)
    assert (host.status(), host.serving_tag()) == (DeploymentStatus.RUNNING, "v1")
    (event,) = events(host, "relaunch")
    assert event.reason == "unhealthy for 60 s: unreachable: no answer within 5 s"
    assert told(host).keys() == {"relaunched"}


def test_what_is_not_asked_for_is_not_done() -> None:
    host = SimulatedHost()
    host.serve("v1")
    host.sick_tags.add("v1")
    assert seconds_until_relaunch(host, 600) is None
    host.close()


def test_what_gets_well_in_time_is_left_alone(host: SimulatedHost) -> None:
    for _ in range(5):
        host.sick_tags.add("v1")
        assert seconds_until_relaunch(host, int(AFTER_S) - 10) is None
        host.sick_tags.clear()
        host.settle(seconds=4)
    assert events(host, "relaunch") == []


def test_each_further_one_waits_twice_as_long_and_none_is_a_crash_loop(
    host: SimulatedHost,
) -> None:
    host.sick_tags.add("v1")
    waits = [seconds_until_relaunch(host) for _ in range(8)]
    wanted = (60, 120, 240, 480, 960, 1920, 3600, 3600)
    assert waits == [pytest.approx(wait, abs=5) for wait in wanted]
    assert host.deployment().relaunches == ()
    assert host.status() is DeploymentStatus.DEGRADED


def test_clients_are_refused_and_reset_before_it_is_ended_with_its_grace(
    host: SimulatedHost,
) -> None:
    (key,) = host.vms
    host.sick_tags.add("v1")
    host.settle(seconds=50)
    host.log.clear()
    assert seconds_until_relaunch(host) is not None
    kinds = [one.kind for one in host.log]
    assert kinds[:2] == [ActionKind.APPLY_ROUTE, ActionKind.RESET]
    (stop,) = (one for one in host.log if one.kind is ActionKind.STOP)
    assert (stop.enclave, stop.grace_s) == (key, ASKED.stop_grace_s)


def test_while_it_is_ended_a_person_is_told_why_nothing_serves(host: SimulatedHost) -> None:
    host.sick_tags.add("v1")
    seconds_until_relaunch(host)
    outage = told(host)["outage"]
    assert "was ended because it stayed unhealthy: no answer within 5 s" in outage.detail
    assert told(host)["relaunched"].since is not None


@pytest.mark.parametrize("after", [ActionKind.APPLY_ROUTE, ActionKind.RESET, ActionKind.STOP])
def test_a_crash_of_the_agent_in_between_changes_nothing(
    host: SimulatedHost, after: ActionKind
) -> None:
    host.sick_tags.add("v1")
    host.settle(seconds=50)
    before, crashed = launch_of(host), False
    for _ in range(100):
        plan = host.think()
        for action in sorted(plan.actions if plan else (), key=lambda one: one.kind):
            dies = not crashed and action.kind is after and bool(events(host, "relaunch"))
            host.perform(action, forget=dies)
            if dies:
                host.crash()
                crashed = True
                break
        if launch_of(host) not in (before, None):
            break
        host.boot_all()
        host.clock.advance(1)
    assert crashed
    assert len(events(host, "relaunch")) == 1
    host.sick_tags.clear()
    host.settle(seconds=20)
    assert host.serving_tag() == "v1"


def test_a_restart_of_the_agent_does_not_begin_the_time_anew(host: SimulatedHost) -> None:
    host.sick_tags.add("v1")
    host.settle(seconds=40)
    host.crash()
    left_s = seconds_until_relaunch(host)
    assert left_s is not None
    assert left_s < AFTER_S - 30


def test_it_is_not_done_while_an_update_runs_and_its_time_begins_with_what_serves(
    host: SimulatedHost,
) -> None:
    host.request("v2", staging=True)
    host.until(Step.ACCEPT)
    host.sick_tags.add("v1")
    before = dict.fromkeys(vm.launch_uuid for vm in host.vms.values())
    host.settle(seconds=600, step_s=60)
    assert dict.fromkeys(vm.launch_uuid for vm in host.vms.values()) == before
    assert told(host)["unhealthy"].code == "unhealthy"
    host.flag(accepted=True)
    host.settle(seconds=200)
    assert (host.serving_tag(), host.status()) == ("v2", DeploymentStatus.RUNNING)
    assert events(host, "relaunch") == []


def test_what_could_not_be_launched_again_is_left_running(host: SimulatedHost) -> None:
    """Certificates that are spent: a guest that is half well is better than none."""
    host.tls_mode, host.domain = "acme", "api.example"
    host.serve("v2")
    host.sick_tags.add("v2")
    relaunched = 0
    while seconds_until_relaunch(host, 8000) is not None:
        relaunched += 1
    assert 0 < relaunched < 4
    assert launch_of(host) is not None
    assert "serves once it is healthy" in told(host)["outage"].mend


def test_the_next_version_begins_with_none(host: SimulatedHost) -> None:
    host.sick_tags.add("v1")
    for _ in range(3):
        assert seconds_until_relaunch(host) is not None
    host.serve("v2")
    host.sick_tags.add("v2")
    assert seconds_until_relaunch(host) == pytest.approx(AFTER_S, abs=3)
    assert host.deployment().health.enclave in host.vms


def test_a_deployment_that_is_stopped_meanwhile_stays_stopped(host: SimulatedHost) -> None:
    host.sick_tags.add("v1")
    for _ in range(100):
        host.settle(seconds=1, step_s=1)
        if events(host, "relaunch"):
            break
    host.wish(Wish.STOP)
    host.settle(seconds=60)
    assert (host.vms, host.status()) == ({}, DeploymentStatus.STOPPED)
