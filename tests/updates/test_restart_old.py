"""`restart_old_on_failure`: the old version comes back, however long its GPU is not clean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import pytest

from agent.model.event import Event
from agent.model.evidence_edition import EVIDENCE_EDITION, FIRST_EVIDENCE_EDITION
from agent.model.reasons import Strategy
from agent.model.revision import DeploymentStatus, Wish
from agent.model.update import Step, UpdateStatus
from agent.store.port import Transaction
from agent.updates.admission import restart_old
from agent.updates.errors import RefusedError
from agent.updates.orders import Change
from agent.updates.planner.types import ActionKind
from agent.updates.snapshot.snapshot import DeploymentFacts
from simulator.instant_host import CALLER, InstantHost, Make
from simulator.simulated_host import NAME, SimulatedHost, release


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
    return deployment.restart_old_revision


def fail_and_wait(host: SimulatedHost) -> Callable[[], None]:
    """The update failed, and its GPU is dirty; returns what has the workshop clean again."""
    preparer, host.clean_gpus = host.clean_gpus, lambda: None  # type: ignore[method-assign]
    host.sick_tags.add("v2")
    host.request("v2", restart_old_on_failure=True)
    host.settle(seconds=300)
    assert (host.current().tag, host.current().status) == ("v2", UpdateStatus.FAILED)
    assert owed(host) == 1

    def clean() -> None:
        host.clean_gpus = preparer  # type: ignore[method-assign]

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


def test_it_is_judged_by_the_defaults_that_it_was_admitted_by(host: SimulatedHost) -> None:
    def of_before(tx: Transaction) -> None:
        (row,) = tx.enclaves(NAME)
        revision = tx.revision(NAME, row.revision)
        assert revision is not None
        edition = FIRST_EVIDENCE_EDITION
        tx.put_enclave(msgspec.structs.replace(row, evidence_edition=edition))
        tx.put_revision(msgspec.structs.replace(revision, evidence_edition=edition))

    host.transact(of_before)
    clean = fail_and_wait(host)
    host.crash()
    clean()
    assert serves_again(host)
    (row,) = host.read(lambda tx: tx.enclaves(NAME))
    assert row.evidence_edition == FIRST_EVIDENCE_EDITION
    # A person who starts it asks for an admission of today.
    host.request("v1")
    host.settle(seconds=300)
    (row,) = host.read(lambda tx: tx.enclaves(NAME))
    assert row.evidence_edition == EVIDENCE_EDITION


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


def test_a_gpu_that_fell_ill_with_the_failed_version_may_come_back(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    clean()
    host.gpus = 0
    host.settle(seconds=200)
    assert owed(host) == 1
    host.gpus = 1
    assert serves_again(host)


def test_a_gpu_that_does_not_come_back_is_not_waited_for_for_ever(host: SimulatedHost) -> None:
    clean = fail_and_wait(host)
    clean()
    host.gpus = 0
    host.settle(seconds=700)
    assert owed(host) is None
    assert [one.to for one in told(host)] == ["owed", "refused"]


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
    assert ActionKind.RESTART_OLD not in {action.kind for action in host.log}


async def owing(make: Make) -> InstantHost:
    """The real engine, all of whose GPUs are dirty after an update that failed."""
    host = await make(gpus=1)
    for tag in ("v1", "v2", "v3"):
        host.releases.made[tag] = release(tag, gpus=1)
    await host.deploy(NAME, "v1")
    host.preparer.works = False
    host.vms.failing.add("v2")
    update = await host.update(NAME, "v2", restart_old_on_failure=True)
    assert (update.status, update.strategy) == (UpdateStatus.FAILED, Strategy.STOP_THEN_START)
    await asyncio.sleep(0.05)
    facts = host.engine.snapshot.deployments[NAME]
    assert facts.status is DeploymentStatus.FAILED
    assert facts.row.restart_old_revision == 1
    return host


def is_back(facts: DeploymentFacts) -> bool:
    return facts.status is DeploymentStatus.RUNNING and facts.row.active_revision == 1


@pytest.mark.parametrize("crashed", [False, True])
async def test_the_engine_brings_it_back_by_itself(make: Make, crashed: bool) -> None:
    host = await owing(make)
    await host.engine.drain(CALLER)
    if crashed:
        await host.restart()
    host.preparer.works = True
    await host.until(NAME, is_back)
    assert len(await host.engine.updates(NAME)) == 3


@pytest.mark.parametrize("verb", ["stop", "delete"])
async def test_the_engine_lets_a_stop_or_a_delete_win(make: Make, verb: str) -> None:
    host = await owing(make)
    await getattr(host.engine, verb)(NAME, CALLER)
    host.preparer.works = True
    await asyncio.sleep(1.2)  # longer than it takes to look again
    assert host.vms.running == {}
    if verb == "stop":
        facts = host.engine.snapshot.deployments[NAME]
        assert (facts.status, facts.row.restart_old_revision) == (DeploymentStatus.STOPPED, None)
        back = await host.finish(await host.engine.start(NAME, CALLER))
        assert (back.tag, back.status) == ("v1", UpdateStatus.COMPLETED)
    else:
        assert NAME not in host.engine.snapshot.deployments


@pytest.mark.parametrize("verb", ["retry", "update"])
async def test_the_engine_lets_another_update_win(
    make: Make, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_old, "_LOOK_AGAIN_S", 3600)  # the other one is first
    host = await owing(make)
    host.vms.failing.clear()
    asked = {
        "retry": lambda: host.engine.retry(NAME, CALLER),
        "update": lambda: host.engine.update(NAME, Change(tag="v3"), CALLER),
    }[verb]
    with pytest.raises(RefusedError) as refused:
        await asked()
    assert refused.value.code == "gpus_dirty"
    assert host.engine.snapshot.deployments[NAME].row.restart_old_revision == 1, (
        "refused is no change"
    )
    await host.preparer.clean()
    update = await host.finish(await asked())
    assert update.status is UpdateStatus.COMPLETED
    await asyncio.sleep(0.05)
    facts = host.engine.snapshot.deployments[NAME]
    assert (facts.row.active_revision, facts.row.restart_old_revision) == (update.revision, None)
