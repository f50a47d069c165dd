"""A data plane that does not take the switch of the only version: for a moment, or for good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.model.reasons import Strategy
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.types import ActionKind
from simulator.simulated_host import SimulatedHost


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost(fault_code="traffic_unavailable")
    yield host
    host.close()


@pytest.fixture(params=["fresh", "stop_then_start"])
def update_in_its_boot(request: pytest.FixtureRequest, host: SimulatedHost) -> None:
    if request.param == "fresh":
        host.request("v2")
    else:
        host.serve("v1")
        host.request("v2", strategy=Strategy.STOP_THEN_START)
    host.until(Step.BOOT)


@pytest.mark.usefixtures("update_in_its_boot")
def test_refused_for_a_moment_it_is_tried_again(host: SimulatedHost) -> None:
    host.broken.add(ActionKind.APPLY_ROUTE)
    host.until(Step.SWITCH)
    host.settle(seconds=20)
    assert host.current().step is Step.SWITCH
    assert host.serving_tag() is None
    host.broken.clear()
    host.settle()
    assert host.current().status is UpdateStatus.COMPLETED
    assert host.serving_tag() == "v2"


@pytest.mark.usefixtures("update_in_its_boot")
def test_refused_for_good_it_fails_and_says_why(host: SimulatedHost) -> None:
    host.broken.add(ActionKind.APPLY_ROUTE)
    host.until(Step.SWITCH)
    host.settle(seconds=40)
    host.broken.clear()
    host.settle()
    update = host.current()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.SWITCH)
    assert update.fault is not None
    assert update.fault.code == "traffic_unavailable"
    assert host.vms == {}
