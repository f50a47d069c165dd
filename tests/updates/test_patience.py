"""How long a boot may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from agent.model.resources import Demand
from agent.model.update import Booting, Step, UpdateStatus
from agent.updates.planner.boot_deadline import (
    BOOTS,
    Declared,
    boot_deadline_s,
    declared_by,
    shape_of,
)
from simulator.rows import revision
from simulator.simulated_host import POLICY, SimulatedHost, Vm, release

SMALL = Demand(memory_mib=1024, vcpus=1)
WHOLE = Demand(memory_mib=800 << 10, vcpus=96, gpus=8)
MINUTE = 60


def test_more_memory_processors_and_gpus_are_given_more_time() -> None:
    assert boot_deadline_s(SMALL) == pytest.approx(123)
    for more in (
        Demand(memory_mib=2048, vcpus=1),
        Demand(memory_mib=1024, vcpus=2),
        Demand(memory_mib=1024, vcpus=1, gpus=1),
    ):
        assert boot_deadline_s(more) > boot_deadline_s(SMALL)


def test_the_times_that_are_known_of_large_guests_fit_in() -> None:
    assert boot_deadline_s(WHOLE) > 25 * MINUTE
    assert boot_deadline_s(Demand(memory_mib=64 << 10, vcpus=248)) > 10 * MINUTE


def test_history_counts_from_the_third_boot_and_is_bounded_on_both_sides() -> None:
    size_s = boot_deadline_s(SMALL)
    assert boot_deadline_s(SMALL, [500, 500]) == size_s
    assert boot_deadline_s(SMALL, [50, 40, 30]) == 150
    assert boot_deadline_s(SMALL, [5, 4, 3]) == size_s / 2
    assert boot_deadline_s(SMALL, [500, 500, 500]) == size_s * 2
    assert boot_deadline_s(SMALL, [30] * 20 + [80]) == 90  # what was long ago is forgotten


def test_a_host_learns_how_long_its_guests_boot() -> None:
    host = SimulatedHost()
    for tag in ("v1", "v2", "v3"):
        host.serve(tag)
    demand = release("v1").demand
    boots = host.read(lambda tx: tx.samples(BOOTS, shape_of(demand)))
    assert len(boots) == 3
    assert all(0 <= took < 30 for took in boots)
    host.request("v4")
    host.until(Step.BOOT)
    state = host.current().state
    assert isinstance(state, Booting)
    left = state.deadline.boottime_s - host.clock.now().boottime_s
    assert left <= boot_deadline_s(demand) / 2
    host.close()


def test_what_the_workload_waits_for_comes_on_top_of_the_size() -> None:
    declared = declared_by(revision(boot_wait_s=390, tls_mode="self-signed"), 300)
    assert boot_deadline_s(SMALL, declared=declared) == boot_deadline_s(SMALL) + 690


@pytest.mark.parametrize("mode", ["cert-proxy", "acme"])
def test_a_guest_that_asks_for_a_public_certificate_has_twenty_minutes_at_least(mode: str) -> None:
    declared = declared_by(revision(boot_wait_s=30, tls_mode=mode), 0)
    assert boot_deadline_s(SMALL, declared=declared) == 20 * MINUTE
    longer = declared_by(revision(boot_wait_s=60 * MINUTE, tls_mode=mode), 0)
    assert boot_deadline_s(SMALL, declared=longer) > 60 * MINUTE


@pytest.mark.parametrize(
    "declared", [Declared(wait_s=1000), Declared(at_least_s=1200), Declared(390, 1200)]
)
def test_quick_boots_of_before_never_undercut_what_is_declared(declared: Declared) -> None:
    learned_s = boot_deadline_s(SMALL, [5, 4, 3], declared)
    assert learned_s == max(declared.wait_s, declared.at_least_s)
    assert boot_deadline_s(SMALL, [9000] * 3, declared) <= 2 * boot_deadline_s(
        SMALL, declared=declared
    )


@pytest.fixture
def hanging() -> Iterator[SimulatedHost]:
    """Of whose guests a test says how far their boot is."""
    host = SimulatedHost()
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.request("v1")
    host.until(Step.BOOT)
    yield host
    host.close()


def guest_of(host: SimulatedHost) -> Vm:
    vm = host.vms[host.current().enclave]
    vm.answered, vm.stage = True, "containers"
    return vm


def times_out_after_s(host: SimulatedHost) -> float:
    """From the launch on, letting the time pass."""
    launched = host.read(lambda tx: tx.enclaves())[0].launched_at
    for _ in range(2000):
        if host.current().status is not UpdateStatus.STARTED:
            fault = host.current().fault
            assert fault is not None
            assert fault.code == "boot_timeout"
            passed = host.clock.now().since(launched)
            assert passed is not None
            return passed
        host.settle(seconds=2)
    raise AssertionError("it never times out")


def test_each_newly_finished_stage_gives_a_boot_two_minutes_more(hanging: SimulatedHost) -> None:
    limit_s = boot_deadline_s(release("v1").demand)
    vm = guest_of(hanging)
    hanging.settle(seconds=int(limit_s) - 20)
    vm.progressed_at = hanging.clock.now()
    at_s = hanging.clock.now().since(hanging.read(lambda tx: tx.enclaves())[0].launched_at)
    assert at_s is not None
    assert times_out_after_s(hanging) == pytest.approx(at_s + 120, abs=8)


def test_progress_early_in_a_boot_takes_nothing_from_it(hanging: SimulatedHost) -> None:
    vm = guest_of(hanging)
    vm.progressed_at = hanging.clock.now()
    limit_s = boot_deadline_s(release("v1").demand)
    assert times_out_after_s(hanging) == pytest.approx(limit_s, abs=8)


def test_endless_progress_ends_at_three_times_what_was_first_computed(
    hanging: SimulatedHost,
) -> None:
    limit_s = boot_deadline_s(release("v1").demand)
    vm = guest_of(hanging)

    def progress() -> None:
        vm.progressed_at = hanging.clock.now()

    hanging.boot_all = progress  # type: ignore[method-assign]
    assert times_out_after_s(hanging) == pytest.approx(3 * limit_s, abs=8)


def test_a_number_of_the_operators_is_final() -> None:
    host = SimulatedHost(policy=dataclasses.replace(POLICY, boot_deadline_s=60))
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.request("v1")
    host.until(Step.BOOT)
    vm = guest_of(host)
    host.settle(seconds=40)
    vm.progressed_at = host.clock.now()
    assert times_out_after_s(host) == pytest.approx(60, abs=8)
    host.close()


def test_the_extended_deadline_is_the_one_that_is_shown(hanging: SimulatedHost) -> None:
    vm = guest_of(hanging)
    hanging.settle(seconds=100)
    vm.progressed_at = hanging.clock.now()
    assert hanging.deadline() == vm.progressed_at.plus(120)


def test_a_boot_that_times_out_says_where_it_stood(hanging: SimulatedHost) -> None:
    vm = guest_of(hanging)
    vm.stage = "models"
    times_out_after_s(hanging)
    fault = hanging.current().fault
    assert fault is not None
    assert "stage models is under way" in fault.detail


def test_retries_for_a_certificate_are_told_as_what_they_are() -> None:
    host = SimulatedHost(tls_mode="cert-proxy", domain="example.org")
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.request("v1")
    host.until(Step.BOOT)
    vm = guest_of(host)
    vm.stage, vm.stage_since = "certificate", host.clock.now()
    host.settle(seconds=10)
    assert host.boot_note() is None
    host.settle(seconds=80)
    assert host.boot_note() == (
        "no certificate yet: the guest asks the certificate proxy again every 5 min "
        "(asked once so far)"
    )
    host.settle(seconds=600)
    assert "asked about 3 times so far" in (host.boot_note() or "")
    times_out_after_s(host)
    fault = host.current().fault
    assert fault is not None
    assert "no certificate yet: the guest asks the certificate proxy" in fault.detail
    host.close()


@pytest.mark.parametrize("seen", [True, False])
def test_after_its_gpus_were_attested_a_boot_holds_nothing_against_them(seen: bool) -> None:
    """`seen`: by this agent; else by one before, which has recorded it."""
    host = SimulatedHost(gpus=1)
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.request("v1")
    host.until(Step.BOOT)
    vm = guest_of(host)
    vm.gpus_attested = True
    host.settle(seconds=4)
    vm.gpus_attested = seen
    host.die(host.current().enclave)
    host.settle(seconds=10)
    assert host.current().status is UpdateStatus.FAILED
    (condition,) = host.read(lambda tx: tx.gpu_conditions())
    assert condition.failed_launches == 0
    host.close()


def test_a_relaunch_that_ends_after_its_gpus_were_attested_holds_nothing_against_them() -> None:
    host = SimulatedHost(gpus=1)
    host.serve("v1")
    host.boot_all = lambda: None  # type: ignore[method-assign]
    (key,) = host.vms
    host.die(key)
    host.settle(seconds=4)
    host.vms[key].gpus_attested = True
    host.die(key)
    host.settle(seconds=20)
    (condition,) = host.read(lambda tx: tx.gpu_conditions())
    assert condition.failed_launches == 0
    host.close()
