"""How an enclave is stopped: its guest finishes first, and only what is open then is reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import pytest

from agent.enclaves.port import VmPhase
from agent.model.enclave import Lifecycle, Stopping, StopStage
from agent.model.ids import EnclaveId
from agent.model.reasons import Strategy
from agent.model.revision import Wish
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.types import ActionKind
from simulator.simulated_host import NAME, SimulatedHost

OPEN, ENDING = 5, 3  # connections, and those of them that end as the guest powers off
ORDER = [ActionKind.FINISH, ActionKind.RESET, ActionKind.STOP]


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    host.serve("v1")
    (blue,) = host.vms
    host.vms[blue].connections, host.vms[blue].ending = OPEN, ENDING
    yield host
    host.close()


def orders(host: SimulatedHost, enclave: EnclaveId) -> list[ActionKind]:
    return [one.kind for one in host.log if one.enclave == enclave and one.kind in ORDER]


def resets(host: SimulatedHost) -> list[str | None]:
    return [one.to for one in host.read(lambda tx: tx.events(0)) if one.kind == "reset"]


def stop(host: SimulatedHost) -> None:
    host.wish(Wish.STOP)


def delete(host: SimulatedHost) -> None:
    host.wish(Wish.DELETE)


def blue_green(host: SimulatedHost) -> None:
    host.request("v2")


def stop_then_start(host: SimulatedHost) -> None:
    host.request("v2", strategy=Strategy.STOP_THEN_START)


ENDS: list[Callable[[SimulatedHost], None]] = [stop, delete, blue_green, stop_then_start]


@pytest.mark.parametrize("end", ENDS)
def test_the_guest_finishes_first_and_what_is_open_then_is_reset_and_told(
    host: SimulatedHost, end: Callable[[SimulatedHost], None]
) -> None:
    (blue,) = host.vms
    end(host)
    host.settle()
    assert orders(host, blue) == ORDER
    assert blue not in host.vms
    if end in (stop, delete):
        assert resets(host) == [f"{OPEN - ENDING} reset"]
    else:
        assert host.current().status is UpdateStatus.COMPLETED
        assert host.current().reset_connections == OPEN - ENDING


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("after", ORDER)
def test_a_crash_after_any_stage_ends_the_same(
    host: SimulatedHost, end: Callable[[SimulatedHost], None], after: ActionKind
) -> None:
    """Dying between what it does and the note of it: done once more, it finds its work done."""
    (blue,) = host.vms
    end(host)
    perform = host.perform
    died = False

    def perform_and_die(action, *, forget=False):  # type: ignore[no-untyped-def]
        nonlocal died
        dies = not died and action.kind is after and action.enclave == blue
        perform(action, forget=dies or forget)
        if dies:
            died = True
            host.crash()

    host.perform = perform_and_die  # type: ignore[method-assign]
    host.settle()
    assert died
    assert blue not in host.vms
    again = orders(host, blue)
    assert again[-1] is ActionKind.STOP
    assert again.index(ActionKind.RESET) > again.index(ActionKind.FINISH)
    if end in (blue_green, stop_then_start):
        assert host.current().status is UpdateStatus.COMPLETED


@pytest.mark.parametrize("end", ENDS)
def test_without_a_grace_nobody_is_asked_and_what_is_open_is_reset_at_once(
    host: SimulatedHost, end: Callable[[SimulatedHost], None]
) -> None:
    host.policy = replace(host.policy, stop_grace_s=0)
    (blue,) = host.vms
    end(host)
    host.settle()
    assert orders(host, blue) == ORDER[1:]


def test_a_guest_that_cannot_be_asked_is_reset_and_ended(host: SimulatedHost) -> None:
    (blue,) = host.vms
    host.broken.add(ActionKind.FINISH)
    stop(host)
    host.settle()
    assert (host.vms, resets(host)) == ({}, [f"{OPEN} reset"])
    assert orders(host, blue) == ORDER


def test_the_traffic_is_refused_before_the_guest_is_asked(host: SimulatedHost) -> None:
    stop(host)
    host.settle()
    kinds = [one.kind for one in host.log]
    refused = len(kinds) - 1 - kinds[::-1].index(ActionKind.APPLY_ROUTE)
    assert refused < kinds.index(ActionKind.FINISH)


def test_one_that_ends_while_it_finishes_is_not_launched_again(host: SimulatedHost) -> None:
    (blue,) = host.vms
    stop(host)
    perform = host.perform

    def ends_meanwhile(action, *, forget=False):  # type: ignore[no-untyped-def]
        perform(action, forget=forget)
        if action.kind is ActionKind.FINISH:
            host.vms[blue].phase = VmPhase.EXITED
            host.crash()

    host.perform = ends_meanwhile  # type: ignore[method-assign]
    host.settle()
    assert host.vms == {}
    assert [one.kind for one in host.log].count(ActionKind.LAUNCH) == 1


def test_a_rollback_lets_the_new_one_finish_and_a_sick_one_is_reset_at_once(
    host: SimulatedHost,
) -> None:
    host.request("v2")
    host.until(Step.SOAK)
    green = host.current().enclave
    host.vms[green].connections, host.vms[green].ending = 2, 2
    host.roll_back_warm()
    host.settle()
    assert orders(host, green) == ORDER
    assert host.current().reset_connections == 0
    host.request("v2")
    host.until(Step.SOAK)
    green = host.current().enclave
    host.sick_tags.add("v2")
    host.set_health(green, healthy=False)
    host.settle()
    assert orders(host, green) == ORDER[1:]


def test_a_new_version_that_never_served_has_nothing_to_be_reset(host: SimulatedHost) -> None:
    host.sick_tags.add("v2")
    host.request("v2")
    host.settle()
    green = host.current().enclave
    assert host.current().status is UpdateStatus.FAILED
    assert orders(host, green) == [ActionKind.STOP]


def test_a_stop_that_an_earlier_version_began_is_finished(host: SimulatedHost) -> None:
    (blue,) = host.vms
    stop(host)

    def as_it_was(tx):  # type: ignore[no-untyped-def]
        row = tx.enclave(blue)
        tx.put_enclave(msgspec.structs.replace(row, lifecycle=Lifecycle.STOPPING))

    host.transact(as_it_was)
    host.settle()
    assert orders(host, blue) == ORDER[1:]
    assert host.vms == {}


def test_a_stage_lasts_over_a_restart(host: SimulatedHost) -> None:
    (blue,) = host.vms
    stop(host)
    host.broken |= {ActionKind.RESET}
    host.settle(seconds=2)
    row = host.read(lambda tx: tx.enclave(blue))
    assert row is not None
    assert isinstance(row.stopping, Stopping)
    assert row.stopping.stage is StopStage.CUT
    host.crash()
    host.broken.clear()
    host.settle()
    assert orders(host, blue).count(ActionKind.FINISH) == 1
    assert host.read(lambda tx: tx.deployment(NAME)) is not None
