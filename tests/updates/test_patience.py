"""How long a boot may take."""

from __future__ import annotations

import pytest

from agent.model.resources import Demand
from agent.model.update import Booting, Step
from agent.updates.planner.boot_deadline import BOOTS, boot_deadline_s, shape_of
from simulator.simulated_host import SimulatedHost, release

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
