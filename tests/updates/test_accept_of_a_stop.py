"""A staged stop_then_start that waited: it is prepared again before anything is stopped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.model.reasons import Strategy
from agent.model.revision import DeploymentStatus
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.types import ActionKind
from simulator.simulated_host import SimulatedHost
from tests.fakes.invariants import at_rest


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost(memory_mib=600)
    host.serve("v1")
    host.request("v2", staging=True, strategy=Strategy.STOP_THEN_START)
    host.settle()
    assert host.current().step is Step.ACCEPT
    host.log.clear()
    yield host
    host.close()


def kinds(host: SimulatedHost) -> list[ActionKind]:
    return [action.kind for action in host.log]


def test_what_was_lost_while_it_waited_costs_no_downtime(host: SimulatedHost) -> None:
    host.broken.add(ActionKind.PREPARE)
    host.flag(accepted=True)
    host.settle()
    update = host.current()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.PREPARE)
    assert update.old_stopped_at is None
    assert set(kinds(host)) == {ActionKind.PREPARE}, "the old one was not touched"
    assert (host.serving_tag(), host.status()) == ("v1", DeploymentStatus.RUNNING)
    assert at_rest(host) == []


def test_it_is_prepared_again_and_then_goes_on(host: SimulatedHost) -> None:
    host.flag(accepted=True)
    host.settle()
    assert kinds(host).index(ActionKind.PREPARE) < kinds(host).index(ActionKind.STOP)
    assert (host.current().status, host.serving_tag()) == (UpdateStatus.COMPLETED, "v2")


def test_a_cancel_meanwhile_is_still_before_the_stop(host: SimulatedHost) -> None:
    host.flag(accepted=True)
    host.think()
    host.flag(cancel_requested=True)
    host.settle()
    assert (host.current().status, host.serving_tag()) == (UpdateStatus.CANCELLED, "v1")
