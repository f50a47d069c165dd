"""`restart_old_on_failure`: the old version comes back, however long its GPU is not clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agent.model.event import Event
from agent.model.reasons import Strategy
from agent.model.revision import Wish
from agent.model.update import Step, UpdateStatus
from agent.updates.situation import ActionKind
from tests.fakes.simulated_host import NAME, SimulatedHost


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    """One GPU, which the old version has."""
    made = SimulatedHost(gpus=1)
    made.serve("v1")
    yield made
    made.close()


def told(host: SimulatedHost) -> list[Event]:
    return [one for one in host.read(lambda tx: tx.events(0)) if one.kind == "restart_old"]


def owed(host: SimulatedHost) -> int | None:
    deployment = host.read(lambda tx: tx.deployment(NAME))
    assert deployment is not None
    return deployment.restart_revision


def fail_and_wait(host: SimulatedHost) -> Callable[[], None]:
    """The update failed, and its GPU is dirty; returns what has the workshop clean again."""
    workshop, host.clean_gpus = host.clean_gpus, lambda: None  # type: ignore[method-assign]
    host.sick_tags.add("v2")
    host.request("v2", restart_old_on_failure=True)
    host.settle(seconds=300)
    assert (host.current().tag, host.current().status) == ("v2", UpdateStatus.FAILED)
    assert owed(host) == 1

    def clean() -> None:
        host.clean_gpus = workshop  # type: ignore[method-assign]

    return clean


def serves_again(host: SimulatedHost) -> bool:
    host.settle(seconds=120)
    update = host.current()
    back = (update.tag, update.status) == ("v1", UpdateStatus.COMPLETED)
    return back and host.serving_tag() == "v1" and owed(host) is None


def test_it_waits_for_the_gpu_to_be_cleaned(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    assert host.serving_tag() is None
    clean()
    assert serves_again(host)
    assert [one.to for one in told(host)] == ["owed"]


def test_it_is_owed_still_after_a_crash(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    host.crash()
    host.settle(seconds=30)
    assert owed(host) == 1
    clean()
    assert serves_again(host)


def test_a_drain_of_the_host_does_not_take_back_what_was_promised(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    host.draining = True
    clean()
    assert serves_again(host)


def test_where_there_is_no_room_any_more_an_event_says_why(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    host.memory_mib = 64
    clean()
    host.settle(seconds=60)
    assert (owed(host), host.vms) == (None, {})
    last = told(host)[-1]
    assert last.to == "refused"
    assert last.reason is not None
    assert last.reason.startswith("memory_insufficient: ")
    deployment = host.read(lambda tx: tx.deployment(NAME))
    assert deployment is not None
    assert deployment.fault is not None
    host.memory_mib = 4096
    host.settle(seconds=60)
    assert host.current().tag == "v2", "given up is given up"


def test_where_its_secrets_are_gone_an_event_says_why(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    host.gone_secrets = ("KEY",)
    clean()
    host.settle(seconds=60)
    last = told(host)[-1]
    assert last.to == "refused"
    assert "KEY" in (last.reason or "")
    assert (owed(host), host.vms) == (None, {})


@pytest.mark.parametrize("wish", [Wish.STOP, Wish.DELETE])
def test_a_stop_or_a_delete_meanwhile_wins(host: SimulatedHost, wish: Wish) -> None:
    clean = fail_and_wait(host)
    host.wish(wish)
    clean()
    host.settle(seconds=120)
    assert (host.vms, host.serving_tag()) == ({}, None)
    if wish is Wish.STOP:
        assert (host.current().tag, owed(host)) == ("v2", None)


def test_another_request_meanwhile_wins(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    clean()
    host.clean_gpus()
    assert host.request("v3").strategy is Strategy.FRESH
    assert owed(host) is None
    host.settle(seconds=120)
    assert (host.current().tag, host.serving_tag()) == ("v3", "v3")


def test_a_cancel_after_the_stop_wants_nothing_back(host: SimulatedHost) -> None:
    host.sick_tags.add("v2")
    host.request("v2", restart_old_on_failure=True)
    host.until(Step.VERIFY)
    host.flag(cancel_requested=True)
    host.settle(seconds=120)
    assert (owed(host), host.vms) == (None, {})
    assert ActionKind.BRING_BACK not in {action.kind for action in host.log}
