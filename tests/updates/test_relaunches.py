"""An enclave that ends by itself again and again: when it comes back, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from agent.model.revision import DeploymentStatus, Fault
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.types import ActionKind
from simulator.simulated_host import POLICY, SimulatedHost
from tests.fakes.invariants import at_rest

POLICY_OF_THE_DOMAIN = dataclasses.replace(POLICY, relaunch_limit=5)


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost(policy=POLICY_OF_THE_DOMAIN)
    host.serve("v1")
    yield host
    host.close()


def dies_and_waits(host: SimulatedHost, at_most_s: int = 400) -> float | None:
    """Let it end by itself; the seconds until it is launched again, None if it is not."""
    (key,) = host.vms
    before = host.vms[key].launch_uuid
    host.die(key)
    for second in range(at_most_s):
        host.settle(seconds=1, step_s=1)
        if key in host.vms and host.vms[key].launch_uuid != before:
            return second
    return None


def test_it_is_launched_again_at_once_and_then_after_longer_and_longer(
    host: SimulatedHost,
) -> None:
    waits = [dies_and_waits(host) for _ in range(5)]
    assert waits == [pytest.approx(wait, abs=2) for wait in (0, 5, 15, 35, 75)]


def test_after_five_relaunches_it_is_failed_with_all_that_is_known(host: SimulatedHost) -> None:
    for _ in range(5):
        assert dies_and_waits(host) is not None
    host.settle(seconds=20)
    assert host.status() is DeploymentStatus.RUNNING
    assert dies_and_waits(host) is None
    assert (host.status(), host.vms, at_rest(host)) == (DeploymentStatus.FAILED, {}, [])
    fault = host.deployment().fault
    assert fault is not None
    assert (fault.code, fault.step, fault.console_tail) == ("crash_loop", "run", "tail")


def test_one_that_gets_no_further_than_its_boot_says_so_with_the_last_answer(
    host: SimulatedHost,
) -> None:
    host.health_fault = Fault(code="refused", detail="connection refused", probe="https")
    for _ in range(6):
        for vm in host.vms.values():
            vm.booted, vm.healthy = False, False
        for key in list(host.vms):
            host.die(key)
        host.settle(seconds=100)
    fault = host.deployment().fault
    assert fault is not None
    assert (fault.step, fault.probe) == (Step.BOOT, "https")
    assert fault.detail.endswith("last probe response: connection refused")


def test_one_that_is_not_launched_any_more_says_why(host: SimulatedHost) -> None:
    host.broken.add(ActionKind.LAUNCH)
    (key,) = host.vms
    host.die(key)
    host.settle(seconds=600)
    fault = host.deployment().fault
    assert fault is not None
    assert (fault.code, fault.step) == ("crash_loop", Step.LAUNCH)
    assert "launch is broken" in fault.detail


def test_those_of_half_an_hour_ago_count_no_more(host: SimulatedHost) -> None:
    for _ in range(5):
        assert dies_and_waits(host) is not None
    host.clock.advance(host.policy.relaunch_window_s)
    host.settle(seconds=2)
    assert dies_and_waits(host) == pytest.approx(0, abs=2)
    assert host.status() is not DeploymentStatus.FAILED


def test_another_version_begins_with_none(host: SimulatedHost) -> None:
    for _ in range(5):
        dies_and_waits(host)
    assert dies_and_waits(host, at_most_s=20) is None
    host.serve("v2")
    assert host.status() is DeploymentStatus.RUNNING
    assert dies_and_waits(host) == pytest.approx(0, abs=2)
    host.settle(seconds=20)
    assert (host.status(), host.serving_tag()) == (DeploymentStatus.RUNNING, "v2")


def test_so_does_one_that_took_over_while_it_ran(host: SimulatedHost) -> None:
    for _ in range(5):
        dies_and_waits(host)
    host.settle(seconds=20)
    host.serve("v2")
    assert dies_and_waits(host) == pytest.approx(0, abs=2)


def test_a_reboot_of_the_host_is_none(host: SimulatedHost) -> None:
    host.reboot()
    host.settle(seconds=20)
    assert host.deployment().relaunches == ()
    assert host.serving_tag() == "v1"


def test_a_boot_that_takes_too_long_keeps_the_last_answer() -> None:
    host = SimulatedHost(policy=dataclasses.replace(POLICY, boot_deadline_s=60))
    host.health_fault = Fault(code="refused", detail="connection refused", probe="https")
    host.request("v1")
    for _ in range(80):
        answer = host.think()
        for action in answer.actions if answer else ():
            host.perform(action)
        for vm in host.vms.values():
            vm.healthy = False
        host.clock.advance(1)
    assert host.current().status is UpdateStatus.FAILED
    for fault in (host.current().fault, host.deployment().fault):
        assert fault is not None
        assert (fault.code, fault.step, fault.probe) == ("boot_timeout", Step.BOOT, "https")
        assert fault.detail.endswith("last probe response: connection refused")
        assert fault.console_tail == "tail"
    host.close()
