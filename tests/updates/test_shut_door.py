"""A guest that lets nobody in while its VM runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.model.lease import Sample
from agent.model.resources import Demand
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.boot_deadline import shape_of
from agent.updates.planner.shut_door import ANSWERS, SHUT, SHUT_FOR_S, slowness
from simulator.simulated_host import SimulatedHost, Strategy, Vm, release

SMALL = Demand(memory_mib=0, vcpus=0)


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    """Serving v1; what comes next does not boot."""
    host = SimulatedHost()
    host.serve("v1")
    host.boot_all = lambda: None  # type: ignore[method-assign]
    yield host
    host.close()


def boot_until(host: SimulatedHost, stage: str | None, **options: object) -> Vm:
    """Request v2, whose guest answers and comes to this stage."""
    host.request("v2", **options)
    host.until(Step.BOOT)
    vm = host.vms[host.current().enclave]
    vm.answered, vm.stage = True, stage
    host.settle(seconds=2)
    return vm


def shut(host: SimulatedHost, vm: Vm) -> None:
    vm.shut_since = host.clock.now()


def fault_code(host: SimulatedHost) -> str | None:
    fault = host.current().fault
    return fault.code if fault else None


def test_it_ends_the_update_in_half_a_minute_and_says_where(host: SimulatedHost) -> None:
    shut(host, boot_until(host, "vault-secrets"))
    host.settle(seconds=int(SHUT_FOR_S) - 6)
    assert host.current().status is UpdateStatus.STARTED
    host.settle(seconds=12)
    update = host.current()
    assert (update.status, update.step, fault_code(host)) == (UpdateStatus.FAILED, Step.BOOT, SHUT)
    assert update.fault is not None
    assert "with stage vault-secrets under way" in update.fault.detail
    assert host.serving_tag() == "v1"


def test_after_the_stop_of_the_old_version_it_is_the_same(host: SimulatedHost) -> None:
    shut(host, boot_until(host, "identity", strategy=Strategy.STOP_THEN_START))
    host.settle(seconds=40)
    assert (host.current().status, fault_code(host)) == (UpdateStatus.FAILED, SHUT)


def test_a_break_in_it_begins_it_anew(host: SimulatedHost) -> None:
    vm = boot_until(host, "identity")
    for _ in range(4):
        shut(host, vm)
        host.settle(seconds=20)
        vm.shut_since = None
        host.settle(seconds=2)
    assert host.current().step is Step.BOOT


def test_a_guest_that_is_silent_has_not_come_up_yet(host: SimulatedHost) -> None:
    host.request("v2")
    host.until(Step.BOOT)
    host.settle(seconds=60)
    assert host.current().step is Step.BOOT


def test_a_guest_that_refuses_without_ever_answering_has_failed_as_well(
    host: SimulatedHost,
) -> None:
    """One that fails right after its network came up leaves nobody the time to ask."""
    host.request("v2")
    host.until(Step.BOOT)
    host.settle(seconds=20)
    shut(host, host.vms[host.current().enclave])
    host.settle(seconds=int(SHUT_FOR_S) + 8)
    update = host.current()
    assert (update.status, update.step, fault_code(host)) == (UpdateStatus.FAILED, Step.BOOT, SHUT)
    assert update.fault is not None
    assert "without ever answering" in update.fault.detail


def test_in_the_stage_of_the_containers_its_server_may_be_restarting(host: SimulatedHost) -> None:
    vm = boot_until(host, "containers")
    shut(host, vm)
    host.settle(seconds=60)
    assert host.current().step is Step.BOOT


@pytest.mark.parametrize(("stage", "ends"), [("identity", True), ("containers", False)])
def test_an_agent_that_begins_anew_knows_that_it_answered_and_how_far_it_was(
    host: SimulatedHost, stage: str, ends: bool
) -> None:
    vm = boot_until(host, stage)
    host.crash()
    vm.answered, vm.stage = False, None  # the new agent has seen nothing but a shut door
    shut(host, vm)
    host.settle(seconds=50)
    assert (fault_code(host) == SHUT) is ends


def test_a_vm_that_ended_is_told_as_that(host: SimulatedHost) -> None:
    shut(host, boot_until(host, "identity"))
    host.die(host.current().enclave)
    host.settle(seconds=50)
    assert fault_code(host) == "vm_exited"


def test_a_guest_that_has_booted_and_shuts_its_door_before_the_switch_ends_its_update(
    host: SimulatedHost,
) -> None:
    vm = boot_until(host, None)
    vm.booted = True
    host.settle(seconds=4)
    assert host.current().step is Step.VERIFY
    shut(host, vm)
    host.settle(seconds=40)
    update = host.current()
    assert (update.status, update.step, fault_code(host)) == (
        UpdateStatus.FAILED,
        Step.VERIFY,
        SHUT,
    )


def test_what_serves_is_not_ended_by_it(host: SimulatedHost) -> None:
    ((key, vm),) = host.vms.items()
    shut(host, vm)
    host.settle(seconds=300)
    assert host.serving_tag() == "v1"
    assert host.vms[key] is vm


def test_its_gpus_are_blamed_only_if_it_was_judging_them() -> None:
    for stage, blamed in (("identity", 0), ("gpu-attestation", 1), ("vault-secrets", 1)):
        host = SimulatedHost(gpus=1)
        host.boot_all = lambda: None  # type: ignore[method-assign]
        vm = boot_until(host, stage)
        vm.gpus_attested = stage == "vault-secrets"
        shut(host, vm)
        host.settle(seconds=40)
        (condition,) = host.read(lambda tx: tx.gpu_conditions())
        assert fault_code(host) == SHUT
        assert condition.failed_launches == (0 if vm.gpus_attested else blamed), stage
        host.close()


def test_how_slow_a_host_is_is_learned_from_first_answers_and_bounded() -> None:
    assert slowness(SMALL, ()) == 1
    assert slowness(SMALL, (2, 3, 4)) == 1
    assert slowness(SMALL, (30, 40, 300)) == 4
    assert slowness(SMALL, (3000,)) == 10
    assert slowness(Demand(memory_mib=20 << 10, vcpus=0), (60,)) == 2


def test_a_slow_host_bears_it_for_longer(host: SimulatedHost) -> None:
    demand = release("v2").demand
    slow = Sample(kind=ANSWERS, key=shape_of(demand), value_s=30)
    assert 2 < slowness(demand, (30,)) < 3
    for _ in range(3):
        host.transact(lambda tx: tx.add_sample(slow))
    shut(host, boot_until(host, "identity"))
    host.settle(seconds=56)
    assert host.current().step is Step.BOOT
    host.settle(seconds=40)
    assert fault_code(host) == SHUT


def test_the_time_to_the_first_answer_is_kept_of_boots_that_came_through(
    host: SimulatedHost,
) -> None:
    vm = boot_until(host, "identity")
    vm.booted = True
    vm.healthy, vm.healthy_since = True, host.clock.now()
    host.settle(seconds=10)
    kept = host.read(lambda tx: tx.samples(ANSWERS, shape_of(release("v2").demand)))
    assert len(kept) == 1
    assert 0 < kept[0] < 10
