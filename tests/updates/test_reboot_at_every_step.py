"""The host is rebooted at any moment of an update: nobody is blamed, and nothing stays down."""

from __future__ import annotations

import pytest

from agent.model.reasons import Strategy
from agent.model.revision import DeploymentStatus
from agent.model.update import Decided, Step, UpdateStatus
from agent.updates.planner.types import ActionKind
from agent.updates.planner.upkeep import SECRETS_MISSING
from simulator.simulated_host import SimulatedHost
from tests.fakes.invariants import at_rest, broken
from tests.fakes.moments import CASES, Case, at_every_moment

STEPS = {
    Strategy.FRESH: {Step.PREPARE, Step.LAUNCH, Step.BOOT, Step.VERIFY, Step.SWITCH},
    Strategy.BLUE_GREEN: set(Step)
    - {Step.STOP_OLD, Step.RELEASE, Step.REVERT, Step.TEARDOWN, Step.ACCEPT},
    Strategy.STOP_THEN_START: set(Step)
    - {Step.RELEASE, Step.ACCEPT, Step.DRAIN, Step.RETIRE, Step.REVERT, Step.TEARDOWN},
}


def failures(host: SimulatedHost) -> int:
    conditions = host.read(lambda tx: tx.gpu_conditions())
    return sum(one.failed_launches for one in conditions)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_update_goes_on_after_a_reboot_at_any_moment(case: Case) -> None:
    seen = set()
    for host, before in at_every_moment(case, SimulatedHost.reboot):
        where = f"rebooted in {before.step}: {before.state}"
        seen.add(before.step)
        assert broken(host) == [], where
        host.settle(seconds=160)
        if host.current().running:
            assert host.current().step is Step.ACCEPT, where
            host.flag(accepted=True)
            host.settle(seconds=160)
        assert (at_rest(host), broken(host)) == ([], []), where
        assert host.current().status is UpdateStatus.COMPLETED, where
        assert (host.serving_tag(), host.status()) == ("v2", DeploymentStatus.RUNNING), where
        assert failures(host) == 0, where
    assert seen >= STEPS[case.strategy]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_secrets_that_the_reboot_took_are_waited_for(case: Case) -> None:
    def reboot(host: SimulatedHost) -> None:
        host.reboot()
        host.broken |= {ActionKind.LAUNCH, ActionKind.PREPARE}
        host.fault_code, host.missing_secrets = SECRETS_MISSING, ("KEY",)

    for host, before in at_every_moment(case, reboot):
        where = f"rebooted in {before.step}: {before.state}"
        host.settle(seconds=60)
        update = host.current()
        assert update.decided is not Decided.FAIL, where
        assert host.status() is DeploymentStatus.WAITING_FOR_SECRETS, where
        host.broken.clear()
        host.missing_secrets = ()
        host.settle(seconds=160)
        if host.current().running:
            host.flag(accepted=True)
            host.settle(seconds=160)
        assert at_rest(host) == [], where
        assert (host.serving_tag(), host.status()) == ("v2", DeploymentStatus.RUNNING), where


def test_a_warm_version_that_was_to_take_the_traffic_back_is_launched_again() -> None:
    host = Case(Strategy.BLUE_GREEN).begin()
    host.until(Step.SOAK)
    host.sick_tags.add("v2")
    while host.current().decided is not Decided.FAIL:
        host.boot_all()
        host.think()
    host.reboot()
    host.settle(seconds=60)
    assert (host.current().status, host.serving_tag()) == (UpdateStatus.FAILED, "v1")
    assert at_rest(host) == []
    host.close()


def test_a_vm_that_is_lost_without_a_reboot_is_the_fault_of_the_new_version() -> None:
    host = Case(Strategy.BLUE_GREEN).begin()
    host.until(Step.VERIFY)
    host.vanish(host.current().enclave)
    host.settle(seconds=60)
    fault = host.current().fault
    assert fault is not None
    assert (fault.code, host.serving_tag()) == ("vm_lost", "v1")
    host.close()
