"""What is open to a version that goes is reset and counted, also when the first try fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.model.reasons import Strategy
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.types import Action, ActionKind, Outcome
from simulator.simulated_host import SimulatedHost


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    host.serve("v1")
    (blue,) = host.vms
    host.vms[blue].connections = 3
    yield host
    host.close()


def given_up(host: SimulatedHost) -> list[str | None]:
    events = host.read(lambda tx: tx.events(0))
    return [event.to for event in events if event.kind == "reset"]


def test_a_stop_tries_again_while_the_old_one_lives(host: SimulatedHost) -> None:
    host.request("v2", strategy=Strategy.STOP_THEN_START)
    host.broken |= {ActionKind.RESET, ActionKind.STOP}
    host.until(Step.STOP_OLD)
    host.settle(seconds=60)
    assert host.current().step is Step.STOP_OLD
    host.broken = {ActionKind.STOP}
    host.settle(seconds=4)
    host.broken.clear()
    host.settle()
    assert (host.current().status, host.current().reset_connections) == (
        UpdateStatus.COMPLETED,
        3,
    )
    assert given_up(host) == []


def test_a_stop_tries_for_a_while_after_the_vm_is_gone_and_then_says_so(
    host: SimulatedHost,
) -> None:
    host.request("v2", strategy=Strategy.STOP_THEN_START)
    host.broken.add(ActionKind.RESET)
    host.until(Step.STOP_OLD)
    host.settle(seconds=6)
    assert (host.current().step, host.vms) == (Step.STOP_OLD, {})
    host.settle()
    assert host.current().status is UpdateStatus.COMPLETED, "it is not down for ever for that"
    assert given_up(host) == ["given up"]


def test_a_retirement_tries_again_before_it_ends_the_vm(host: SimulatedHost) -> None:
    host.request("v2")
    host.broken.add(ActionKind.RESET)
    host.until(Step.RETIRE)
    host.settle(seconds=6)
    assert (host.current().step, len(host.vms)) == (Step.RETIRE, 2)
    host.broken.clear()
    host.settle()
    assert (host.current().status, host.current().reset_connections) == (
        UpdateStatus.COMPLETED,
        3,
    )


def test_a_reset_under_way_is_not_cut_short_by_the_zero_that_it_makes(
    host: SimulatedHost,
) -> None:
    host.request("v2")
    host.broken.add(ActionKind.RESET)
    host.until(Step.RETIRE)
    host.outcomes.clear()
    answer = host.think()
    (blue,) = (key for key, vm in host.vms.items() if vm.connections)
    reset = Action(ActionKind.RESET, enclave=blue)
    assert answer is not None
    assert answer.actions == {reset}
    host.vms[blue].connections = 0
    assert host.think() == answer
    host.outcomes[reset] = Outcome(count=3)
    host.broken.clear()
    host.settle()
    assert (host.current().status, host.current().reset_connections) == (
        UpdateStatus.COMPLETED,
        3,
    )


def test_what_is_open_to_an_old_one_that_ends_in_its_drain_is_reset_and_counted(
    host: SimulatedHost,
) -> None:
    """Its clients would wait for a guest that answers no more."""
    host.policy = replace(host.policy, drain_s=600)
    host.request("v2")
    host.until(Step.DRAIN)
    (blue,) = (key for key, vm in host.vms.items() if vm.connections)
    host.die(blue)
    host.settle()
    assert (host.current().status, host.current().reset_connections) == (
        UpdateStatus.COMPLETED,
        3,
    )


def test_a_retirement_gives_up_after_a_while_and_says_so(host: SimulatedHost) -> None:
    host.request("v2")
    host.broken.add(ActionKind.RESET)
    host.until(Step.RETIRE)
    host.settle(seconds=60)
    assert (host.current().status, given_up(host)) == (UpdateStatus.COMPLETED, ["given up"])


def test_a_new_one_that_served_and_fails_is_reset_again_too(host: SimulatedHost) -> None:
    host.request("v2")
    host.until(Step.SOAK)
    green = host.current().enclave
    host.vms[green].connections = 2
    host.broken.add(ActionKind.RESET)
    host.sick_tags.add("v2")
    host.settle(seconds=6)
    assert green in host.vms
    host.broken.clear()
    host.settle()
    assert (host.current().status, host.current().reset_connections) == (UpdateStatus.FAILED, 2)


def test_one_that_ended_by_itself_is_reset_while_it_is_cleaned(host: SimulatedHost) -> None:
    (blue,) = host.vms
    host.die(blue)
    host.broken |= {ActionKind.RESET, ActionKind.STOP}
    host.settle(seconds=4)
    host.broken.discard(ActionKind.RESET)
    host.settle(seconds=2)
    assert host.vms[blue].connections == 0
    host.broken.clear()
    host.settle()
    assert host.serving_tag() == "v1"
