"""Updates from beginning to end, on a simulated host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.model.reasons import DecidedStrategy, Strategy
from agent.model.revision import Wish
from agent.model.update import Decided, Step, UpdateStatus
from agent.updates.errors import ConflictError, RefusedError
from agent.updates.planner.types import ActionKind
from simulator.simulated_host import NAME, SimulatedHost


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    yield host
    host.close()


@pytest.fixture
def small() -> Iterator[SimulatedHost]:
    """Room for one enclave and no second."""
    host = SimulatedHost(memory_mib=600)
    yield host
    host.close()


def statuses(host: SimulatedHost) -> list[str]:
    events = host.read(lambda tx: tx.events(0))
    return [event.to or "" for event in events if event.kind == "update"]


def test_a_fresh_deployment_serves_once_it_is_healthy(host: SimulatedHost) -> None:
    host.serve("v1")
    assert host.current().status is UpdateStatus.COMPLETED
    assert host.serving_tag() == "v1"
    assert [s.split("/")[0] for s in statuses(host)] == [
        "pending",
        "pending",
        "started",
        "started",
        "ready",
        "completed",
    ]


def test_blue_green_never_refuses_and_ends_with_one_vm(host: SimulatedHost) -> None:
    host.serve("v1")
    before = len(host.log)
    update = host.request("v2")
    assert update.strategy is Strategy.BLUE_GREEN
    host.settle()
    assert host.serving_tag() == "v2"
    assert len(host.vms) == 1
    routes = [a for a in host.log[before:] if a.kind is ActionKind.APPLY_ROUTE]
    assert len(routes) == 1, "one transaction of the data plane a switch"


def test_a_sick_new_version_changes_nothing(host: SimulatedHost) -> None:
    host.serve("v1")
    generation = host.data_plane
    host.sick_tags.add("v2")
    host.request("v2")
    host.settle()
    update = host.current()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.VERIFY)
    assert update.fault is not None
    assert update.fault.detail == "503"
    assert update.fault.console_tail == "tail"
    assert host.data_plane == generation
    assert len(host.vms) == 1


def test_a_staged_update_waits_for_accept(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2", staging=True)
    host.settle()
    assert host.current().status is UpdateStatus.READY
    assert host.serving_tag() == "v1"
    host.flag(accepted=True)
    host.settle()
    assert host.current().status is UpdateStatus.COMPLETED
    assert host.serving_tag() == "v2"


def test_a_staged_green_that_gets_sick_fails(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2", staging=True)
    host.settle()
    host.sick_tags.add("v2")
    host.settle()
    assert (host.current().status, host.current().step) == (UpdateStatus.FAILED, Step.ACCEPT)
    assert host.serving_tag() == "v1"


def test_cancel_tears_only_the_new_one_down(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2", staging=True)
    host.settle()
    host.flag(cancel_requested=True)
    host.settle()
    assert host.current().status is UpdateStatus.CANCELLED
    assert host.serving_tag() == "v1"
    assert len(host.vms) == 1


def test_a_green_that_fails_in_its_soak_gives_the_traffic_back(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2")
    host.until(Step.SOAK)
    assert host.serving_tag() == "v2"
    host.sick_tags.add("v2")
    host.settle()
    assert (host.current().status, host.current().step) == (UpdateStatus.FAILED, Step.REVERT)
    assert host.serving_tag() == "v1"


def test_a_data_plane_that_refuses_the_switch_reverts(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2")
    host.until(Step.VERIFY)
    host.broken.add(ActionKind.APPLY_ROUTE)
    host.settle(seconds=60)
    assert host.current().decided is Decided.FAIL
    assert host.serving_tag() == "v1"
    host.broken.clear()
    host.settle()
    assert host.current().status is UpdateStatus.FAILED
    assert host.serving_tag() == "v1"


def test_without_room_the_old_one_is_stopped_first(small: SimulatedHost) -> None:
    small.serve("v1")
    update = small.request("v2")
    assert update.strategy is Strategy.STOP_THEN_START
    small.settle()
    update = small.current()
    assert update.status is UpdateStatus.COMPLETED
    assert update.downtime_s is not None
    assert update.downtime_s > 0
    assert small.serving_tag() == "v2"
    addresses = [row.address for row in small.read(lambda tx: tx.enclaves())]
    assert addresses == ["10.9.0.2"], "its address is kept"


def test_a_stop_then_start_that_fails_is_left_failed_and_can_be_retried(
    small: SimulatedHost,
) -> None:
    small.serve("v1")
    small.sick_tags.add("v2")
    small.request("v2")
    small.settle()
    deployment = small.read(lambda tx: tx.deployment(NAME))
    assert deployment is not None
    assert deployment.fault is not None
    assert small.data_plane is not None
    assert small.data_plane[1] is None, "refusing"
    assert small.vms == {}
    assert small.request("v1").strategy is Strategy.FRESH
    small.settle()
    assert small.serving_tag() == "v1"


def test_the_old_version_comes_back_by_itself_if_that_was_asked_for(small: SimulatedHost) -> None:
    small.serve("v1")
    small.sick_tags.add("v2")
    small.request("v2", restart_old_on_failure=True)
    small.settle()
    assert small.current().tag == "v1"
    assert small.current().status is UpdateStatus.COMPLETED
    assert small.serving_tag() == "v1"


def test_cancel_before_the_stop_leaves_the_old_one_running(small: SimulatedHost) -> None:
    small.serve("v1")
    small.request("v2", staging=True, strategy=Strategy.STOP_THEN_START)
    small.settle()
    assert (small.current().status, small.current().step) == (UpdateStatus.PENDING, Step.ACCEPT)
    small.flag(cancel_requested=True)
    small.settle()
    assert small.current().status is UpdateStatus.CANCELLED
    assert small.serving_tag() == "v1"


def test_cancel_after_the_stop_fails_the_deployment(small: SimulatedHost) -> None:
    small.serve("v1")
    small.sick_tags.add("v2")
    small.request("v2")
    small.until(Step.VERIFY)
    small.flag(cancel_requested=True)
    small.settle()
    update = small.current()
    assert update.status is UpdateStatus.FAILED
    assert update.fault is not None
    assert update.fault.code == "cancelled_after_stop"
    assert small.vms == {}


def test_insisting_on_blue_green_without_room_is_refused(small: SimulatedHost) -> None:
    small.serve("v1")
    with pytest.raises(RefusedError) as refused:
        small.request("v2", strategy=Strategy.BLUE_GREEN)
    assert refused.value.decision.strategy is DecidedStrategy.REFUSE
    assert any(r.code == "memory_insufficient" for r in refused.value.reasons)


def test_a_vm_that_ends_by_itself_is_relaunched_and_refuses_meanwhile(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    (key,) = host.vms
    first = host.vms[key].launch_uuid
    host.die(key)
    answer = host.think()
    assert answer is not None
    for action in answer.actions:
        host.perform(action)
    assert host.data_plane is not None
    assert host.data_plane[1] is None
    host.settle()
    assert host.serving_tag() == "v1"
    assert host.vms[key].launch_uuid != first


def test_what_was_open_to_a_vm_that_ended_is_reset_once_before_it_is_cleaned(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    (key,) = host.vms
    for _ in range(2):  # the second time it waits before it is relaunched
        host.vms[key].connections = 3
        host.die(key)
        before = len(host.log)
        host.settle(seconds=2)
        kinds = [action.kind for action in host.log[before:]]
        assert kinds[:2] == [ActionKind.APPLY_ROUTE, ActionKind.RESET]
        host.settle(seconds=60)
        kinds = [action.kind for action in host.log[before:]]
        assert kinds.index(ActionKind.RESET) < kinds.index(ActionKind.STOP)
    assert host.serving_tag() == "v1"


def test_nobody_is_sent_back_to_a_vm_that_ended_while_it_is_cleaned(host: SimulatedHost) -> None:
    host.serve("v1")
    (key,) = host.vms
    host.die(key)
    answer = host.think()
    assert answer is not None
    while not any(action.kind is ActionKind.STOP for action in answer.actions):
        for action in answer.actions:
            host.perform(action)
        answer = host.think()
        assert answer is not None
    host.begin_stop(key)
    again = host.think()
    assert again is not None
    assert {action.kind for action in again.actions} == {ActionKind.STOP}
    assert host.serving_tag() is None
    host.settle()
    assert host.serving_tag() == "v1"


def test_a_crash_loop_ends_as_failed(host: SimulatedHost) -> None:
    host.serve("v1")
    for _ in range(10):
        for key in list(host.vms):
            host.die(key)
        host.settle(seconds=60)
    deployment = host.read(lambda tx: tx.deployment(NAME))
    assert deployment is not None
    assert deployment.fault is not None
    assert deployment.fault.code == "crash_loop"
    assert host.vms == {}


def test_an_old_version_that_dies_while_the_new_boots_disturbs_nobody(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    (blue,) = host.vms
    host.request("v2")
    host.until(Step.VERIFY)
    host.die(blue)
    host.settle()
    assert host.current().status is UpdateStatus.COMPLETED
    assert host.serving_tag() == "v2"
    assert len(host.vms) == 1


def test_open_connections_are_reset_and_counted_when_the_drain_is_over(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    (blue,) = host.vms
    host.vms[blue].connections = 3
    host.request("v2")
    host.settle()
    assert host.current().reset_connections == 3
    assert host.current().status is UpdateStatus.COMPLETED


def test_stop_refuses_then_stops_and_start_brings_it_back(host: SimulatedHost) -> None:
    host.serve("v1")
    host.wish(Wish.STOP)
    host.settle()
    assert host.vms == {}
    assert host.data_plane is not None
    assert host.data_plane[1] is None
    host.serve("v1")
    assert host.serving_tag() == "v1"


def test_delete_leaves_nothing(host: SimulatedHost) -> None:
    host.serve("v1")
    host.wish(Wish.DELETE)
    host.settle()
    assert host.vms == {}
    assert host.data_plane is None
    assert host.read(lambda tx: (tx.deployments(), tx.enclaves(), tx.claims())) == ([], [], [])


def test_a_second_update_is_refused_while_one_runs(host: SimulatedHost) -> None:
    host.request("v1")
    with pytest.raises((RefusedError, ConflictError)) as refused:
        host.request("v2")
    assert refused.value.code == "update_in_progress"


def test_missing_secrets_are_waited_for_and_are_no_crash_loop(host: SimulatedHost) -> None:
    host.serve("v1")
    host.clock.reboot("boot-2")
    host.vms.clear()
    host.crash()
    host.broken.add(ActionKind.LAUNCH)
    host.fault_code = "secrets_missing"
    host.settle(seconds=4000, step_s=10)
    deployment = host.read(lambda tx: tx.deployment(NAME))
    assert deployment is not None
    assert deployment.fault is None
    assert host.data_plane is not None
    assert host.data_plane[1] is None, "refusing meanwhile"
    host.broken.clear()
    host.settle()
    assert host.serving_tag() == "v1"


def test_a_rollback_to_a_warm_version_boots_nothing(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2")
    host.until(Step.SOAK)
    forward = host.current()
    before = len(host.log)
    back = host.roll_back_warm()
    assert back is not None
    host.settle()
    assert host.serving_tag() == "v1"
    assert len(host.vms) == 1
    assert not [a for a in host.log[before:] if a.kind is ActionKind.LAUNCH]
    ended = host.read(lambda tx: tx.update(forward.id))
    assert ended is not None
    assert ended.fault is not None
    assert (ended.status, ended.fault.code) == (UpdateStatus.FAILED, "rolled_back")
    assert host.current().id == back.id
    assert host.current().status is UpdateStatus.COMPLETED


def test_a_warm_rollback_whose_version_gets_sick_goes_forward_again(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2")
    host.until(Step.SOAK)
    host.roll_back_warm()
    host.until(Step.SOAK)
    host.sick_tags.add("v1")
    host.settle()
    assert host.serving_tag() == "v2"
    assert (host.current().status, host.current().step) == (UpdateStatus.FAILED, Step.REVERT)


def test_with_the_old_one_dead_a_healthy_new_one_is_not_given_up_for_the_data_plane(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    (blue,) = host.vms
    host.request("v2")
    host.until(Step.VERIFY)
    host.broken.add(ActionKind.APPLY_ROUTE)
    host.die(blue)
    host.settle(seconds=60)
    assert host.current().step is Step.SWITCH
    host.broken.clear()
    host.settle()
    assert host.current().status is UpdateStatus.COMPLETED
    assert host.serving_tag() == "v2"
