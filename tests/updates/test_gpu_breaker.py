"""A GPU with which launches fail is kept out, and its deployment goes on with another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from agent.model.enclave import Enclave
from agent.model.ids import Bdf
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.types import ActionKind
from simulator.boards import bdf
from simulator.simulated_host import BROKEN_GPU, NAME, SimulatedHost

ONE, TWO = bdf(1), bdf(2)


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    made = SimulatedHost(gpus=2)
    yield made
    made.close()


def failed_launches(host: SimulatedHost, one: Bdf = ONE) -> int:
    rows = host.read(lambda tx: tx.gpu_conditions())
    return next((row.failed_launches for row in rows if row.bdf == one), 0)


def only(host: SimulatedHost) -> Enclave:
    (row,) = host.read(lambda tx: tx.enclaves())
    return row


def test_after_three_failed_launches_the_deployment_is_relaunched_on_another_gpu(
    host: SimulatedHost,
) -> None:
    host.policy = host.policy.__class__(relaunch_limit=6, relaunch_backoff_s=1)
    host.serve("v1")
    before = only(host)
    assert before.gpus == (ONE,)
    host.bad_gpus.add(ONE)
    host.die(before.id)
    host.settle()
    after = only(host)
    assert (after.id, after.gpus, after.address) == (before.id, (TWO,), before.address)
    assert host.quarantined == {ONE}
    assert host.serving_tag() == "v1"
    claims = {claim.key: claim.holder for claim in host.read(lambda tx: tx.claims())}
    assert claims[TWO] == after.id
    assert ONE not in claims
    events = [one for one in host.read(lambda tx: tx.events(0)) if one.kind == "regroup"]
    assert [(one.to, one.enclave) for one in events] == [("regrouped", after.id)]


def test_without_another_gpu_the_deployment_ends_as_a_crash_loop_and_says_why() -> None:
    host = SimulatedHost(gpus=1)
    host.serve("v1")
    host.bad_gpus.add(ONE)
    host.policy = host.policy.__class__(relaunch_limit=5, relaunch_backoff_s=1)
    host.die(only(host).id)
    host.settle()
    deployment = host.read(lambda tx: tx.deployment(NAME))
    assert deployment is not None
    assert deployment.fault is not None
    assert deployment.fault.code == "crash_loop"
    events = [one for one in host.read(lambda tx: tx.events(0)) if one.kind == "regroup"]
    assert events[0].to == "refused"
    assert "quarantine" in (events[0].reason or "")
    host.close()


def test_a_regrouping_survives_a_crash_of_the_agent_at_any_moment(host: SimulatedHost) -> None:
    host.policy = host.policy.__class__(relaunch_limit=6, relaunch_backoff_s=1)
    host.serve("v1")
    host.bad_gpus.add(ONE)
    host.die(only(host).id)
    for _ in range(60):
        host.settle(seconds=2)
        host.crash()
    host.settle()
    assert only(host).gpus == (TWO,)
    assert host.serving_tag() == "v1"


def test_a_boot_that_does_not_end_counts_against_the_gpu(host: SimulatedHost) -> None:
    host.request("v1")
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.settle(seconds=800)
    update = host.current()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.BOOT)
    assert update.fault is not None
    assert update.fault.code == "boot_timeout"
    assert failed_launches(host) == 1


def test_a_guest_that_dies_in_its_boot_counts_and_one_that_boots_clears_the_count(
    host: SimulatedHost,
) -> None:
    host.request("v1")
    boot_all, host.boot_all = host.boot_all, lambda: None  # type: ignore[method-assign]
    host.settle(seconds=4)
    assert host.current().step is Step.BOOT
    host.die(only(host).id)
    host.settle(seconds=20)
    assert failed_launches(host) == 1
    host.boot_all = boot_all  # type: ignore[method-assign]
    host.serve("v2")
    assert failed_launches(host) == 0


def test_an_enclave_that_served_and_then_ends_says_nothing_of_its_gpu(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    host.die(only(host).id)
    host.settle()
    assert failed_launches(host) == 0
    assert [a.kind for a in host.log].count(ActionKind.LAUNCH) == 2
    assert host.serving_tag() == "v1"


def test_a_relaunch_that_stays_in_its_boot_is_launched_anew_and_counts(
    host: SimulatedHost,
) -> None:
    host.policy = dataclasses.replace(host.policy, relaunch_limit=9, relaunch_backoff_s=1)
    host.serve("v1")
    row = only(host)
    boot_all = host.boot_all

    def hang() -> None:
        """With the first GPU guests never come out of their boot, and their probes say so."""
        for key, vm in host.vms.items():
            held = host.read(lambda tx, key=key: tx.enclave(key))
            if held is not None and ONE in held.gpus:
                vm.healthy = False
            else:
                boot_all()

    host.die(row.id)
    host.boot_all = hang  # type: ignore[method-assign]
    host.settle(seconds=240)
    assert failed_launches(host) == 1
    host.crash()
    host.settle(seconds=900)
    assert host.quarantined == {ONE}
    assert only(host).gpus == (TWO,)
    assert host.serving_tag() == "v1"


def test_an_agent_that_begins_anew_does_not_take_a_guest_for_one_that_never_booted(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    (launch,) = [vm.launch_uuid for vm in host.vms.values()]
    host.clock.advance(10_000)
    for vm in host.vms.values():
        vm.booted = False  # nobody asked it yet
    host.crash()
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.settle(seconds=60)
    assert [vm.launch_uuid for vm in host.vms.values()] == [launch]


def test_the_vm_before_is_gone_before_the_new_launch_is_begun(host: SimulatedHost) -> None:
    host.serve("v1")
    row = only(host)
    host.die(row.id)
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.settle(seconds=30)
    (hung,) = host.vms.values()
    hung.healthy = False
    host.clock.advance(300)
    answer = host.think()
    assert answer is not None
    assert [action.kind for action in answer.actions] == [ActionKind.STOP]
    host.begin_stop(row.id)
    for _ in range(2):  # the second time after a restart of the agent
        answer = host.think()
        assert answer is not None
        assert ActionKind.LAUNCH not in {action.kind for action in answer.actions}
        host.crash()
    host.settle(seconds=10)
    (vm,) = host.vms.values()
    assert vm.launch_uuid == only(host).launch_uuid != hung.launch_uuid


@pytest.mark.parametrize("code", ["memory_insufficient", "measurement_mismatch"])
def test_a_launch_that_failed_before_qemu_had_the_gpu_is_not_held_against_it(
    host: SimulatedHost, code: str
) -> None:
    host.policy = host.policy.__class__(relaunch_limit=5, relaunch_backoff_s=1)
    host.serve("v1")
    host.broken.add(ActionKind.LAUNCH)
    host.fault_code = code
    host.die(only(host).id)
    host.settle(seconds=60)
    assert [action.kind for action in host.log].count(ActionKind.LAUNCH) > 3
    assert failed_launches(host) == 0


def test_an_update_whose_qemu_does_not_come_up_counts_and_a_cancel_does_not(
    host: SimulatedHost,
) -> None:
    host.broken.add(ActionKind.LAUNCH)
    host.fault_code, host.fault_detail = "qemu_exited", BROKEN_GPU
    host.request("v1")
    host.settle(seconds=20)
    assert host.current().status is UpdateStatus.FAILED
    assert failed_launches(host) == 1
    host.broken.clear()
    host.request("v2")
    while host.current().step is not Step.LAUNCH:
        answer = host.think()
        assert answer is not None
        for action in [] if host.current().step is Step.LAUNCH else answer.actions:
            host.perform(action)
    host.flag(cancel_requested=True)
    host.settle(seconds=20)
    assert host.current().status is UpdateStatus.CANCELLED
    assert failed_launches(host) == 1


def test_while_an_update_runs_the_old_one_is_given_no_other_gpu() -> None:
    """Its own or none: the rest of the host is not its to choose from until the update is over."""
    host = SimulatedHost(gpus=3)
    host.policy = dataclasses.replace(host.policy, relaunch_limit=6, relaunch_backoff_s=1)
    host.serve("v1")
    before = only(host)
    host.request("v2", staging=True)
    host.until(Step.ACCEPT)
    host.bad_gpus.add(ONE)
    host.die(before.id)
    host.settle(seconds=200)
    assert host.quarantined == {ONE}
    blue = host.read(lambda tx: tx.enclave(before.id))
    assert blue is not None
    assert (blue.gpus, host.deployment().fault) == ((ONE,), None)
    host.flag(cancel_requested=True)
    host.settle(seconds=200)
    after = only(host)
    assert (after.id, after.gpus != (ONE,)) == (before.id, True)
    assert host.serving_tag() == "v1"
    host.close()
