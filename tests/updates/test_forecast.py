"""What is shown of each rollback, and that this is what then happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from agent.capacity.supply import vm_memory_mib
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.model.update import Step, UpdateStatus
from agent.updates.errors import RefusedError
from agent.updates.orders import Change
from agent.updates.planner.types import Policy
from agent.updates.snapshot.snapshot import DeploymentFacts, Feasibility, RollbackOption
from simulator.boards import bdf, cards
from simulator.instant_host import CALLER, POLICY, InstantHost, Make, new
from simulator.simulated_host import release

NAME = DeploymentName("web")
SLOW = Policy(dwell_s=0, soak_s=60, drain_s=600, stop_grace_s=0)


async def shown(host: InstantHost) -> RollbackOption:
    """Of the revision that served before, by an outlook on this moment."""
    forecast = await host.runtime.forecaster.make()
    return forecast.rollback[NAME][0]


async def two_served(make: Make, policy: Policy = POLICY, gpus: int = 0) -> InstantHost:
    host = await make(policy=policy, gpus=gpus)
    for tag in ("v1", "v2"):
        host.releases.made[tag] = msgspec.structs.replace(
            release(tag, gpus=gpus and 1), secret_names=("KEY",)
        )
    request = new(NAME, "v1", secrets={"KEY": "one"})
    await host.finish(await host.engine.deploy(request, CALLER))
    await host.engine.set_secrets(NAME, {"KEY": "two"}, CALLER)
    return host


def at(step: Step) -> Callable[[DeploymentFacts], bool]:
    return lambda facts: facts.update is not None and facts.update.step is step


async def test_a_version_whose_artifacts_are_here_is_cold_and_comes_back(make: Make) -> None:
    host = await two_served(make)
    await host.update(NAME, "v2")
    assert (await shown(host)).feasibility is Feasibility.COLD
    update = await host.finish(await host.engine.rollback(NAME, None, CALLER))
    assert (update.tag, update.status) == ("v1", UpdateStatus.COMPLETED)


async def test_a_version_whose_artifacts_are_gone_is_fetched_and_comes_back(make: Make) -> None:
    host = await two_served(make)
    await host.update(NAME, "v2")
    host.releases.here.discard("v1")
    assert (await shown(host)).feasibility is Feasibility.FETCH
    update = await host.finish(await host.engine.rollback(NAME, None, CALLER))
    assert (update.tag, update.status) == ("v1", UpdateStatus.COMPLETED)
    assert "v1" in host.releases.here


@pytest.mark.parametrize("step", [Step.SOAK, Step.DRAIN])
@pytest.mark.parametrize("draining", [False, True])
async def test_a_version_that_is_kept_warm_is_warm_and_takes_the_traffic_at_once(
    make: Make, step: Step, draining: bool
) -> None:
    """Nothing is allocated for it, so that a drain of the host is no hindrance."""
    host = await two_served(make, SLOW)
    host.traffic.open = 1
    await host.engine.update(NAME, Change(tag="v2"), CALLER)
    await host.until(NAME, at(step))
    if draining:
        await host.engine.drain(CALLER)
    option = await shown(host)
    assert (option.tag, option.feasibility, option.reason) == ("v1", Feasibility.WARM, None)
    before = set(host.vms.running)
    update = await host.engine.rollback(NAME, None, CALLER)
    await host.until(NAME, lambda facts: facts.update is not None and facts.update.id == update.id)
    assert (update.tag, set(host.vms.running)) == ("v1", before)


async def test_a_warm_version_that_is_not_well_cannot_be_gone_back_to(make: Make) -> None:
    host = await two_served(make, SLOW)
    await host.engine.update(NAME, Change(tag="v2"), CALLER)
    await host.until(NAME, at(Step.SOAK))
    (old,) = [
        e.row for e in host.engine.snapshot.deployments[NAME].enclaves if e.row.revision == 1
    ]
    host.vms.die(old.id)
    await refused(host, "update_in_progress", "another update")


async def refused(host: InstantHost, code: str, words: str) -> None:
    """Shown as impossible with these words, and refused in the same ones."""
    option = await shown(host)
    assert (option.feasibility, words in (option.reason or "")) == (Feasibility.IMPOSSIBLE, True)
    with pytest.raises(RefusedError) as error:
        await host.engine.rollback(NAME, option.revision, CALLER)
    assert (error.value.code, str(error.value)) == (code, option.reason)


def _memory(host: InstantHost) -> None:
    host.supply = msgspec.structs.replace(host.supply, memory_mib=vm_memory_mib(256) - 1)


def _inventory(host: InstantHost) -> None:
    host.supply = msgspec.structs.replace(host.supply, inventory_complete=False)


def _unsigned(host: InstantHost) -> None:
    host.releases.unsigned.add("v1")


def _foreign(host: InstantHost) -> None:
    taken = (Listen(address="127.0.0.1", port=8443),)
    host.supply = msgspec.structs.replace(host.supply, foreign_listeners=taken)


def _secret_values(host: InstantHost) -> None:
    host.runtime.parts.secret_values.forget(NAME)


def _gpus(host: InstantHost) -> None:
    broken = cards(quarantined=[bdf(1), bdf(2)])
    host.supply = msgspec.structs.replace(host.supply, boards=broken)


@pytest.mark.parametrize(
    ("bring_about", "code", "words"),
    [
        (_memory, "memory_insufficient", "MiB of memory needed"),
        (_inventory, "inventory_incomplete", "surveyed"),
        (_unsigned, "signature_required", "v1 is not signed"),
        (_secret_values, "secrets_missing", "values of KEY"),
        (_gpus, "gpus_quarantined", "in quarantine"),
    ],
)
async def test_what_would_be_refused_is_shown_as_impossible_with_the_reason(
    make: Make, bring_about: Callable[[InstantHost], None], code: str, words: str
) -> None:
    host = await two_served(make, gpus=2)
    await host.update(NAME, "v2")
    bring_about(host)
    await refused(host, code, words)


async def test_a_drained_host_goes_back_to_nothing_that_must_be_booted(make: Make) -> None:
    host = await two_served(make)
    await host.update(NAME, "v2")
    await host.engine.drain(CALLER)
    await refused(host, "host_draining", "drained")


async def test_gpus_that_are_being_cleaned_stand_in_the_way_for_as_long(make: Make) -> None:
    host = await two_served(make, gpus=2)
    host.preparer.works = False
    await host.update(NAME, "v2")
    await refused(host, "gpus_dirty", "being cleaned")
    host.preparer.works = True
    await asyncio.sleep(0.1)
    assert (await shown(host)).feasibility is Feasibility.COLD


async def test_a_demand_that_this_board_never_meets_is_impossible(make: Make) -> None:
    host = await make(gpus=3)
    pairs = cards(map(bdf, (1, 2, 3)), sizes=(1, 2))
    singly, host.supply = host.supply, msgspec.structs.replace(host.supply, boards=pairs)
    host.releases.made["v1"] = release("v1", gpus=2)
    host.releases.made["v2"] = release("v2", gpus=1)
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v2")
    host.supply = singly
    await refused(host, "gpu_group_illegal", "no legal group")


async def test_listeners_that_somebody_else_has_meanwhile_are_in_the_way(make: Make) -> None:
    """Of a program on the host, and of another deployment."""
    host = await two_served(make)
    moved = Listen(address="127.0.0.1", port=9443)
    await host.update(NAME, "v2", listen=moved)
    _foreign(host)
    await refused(host, "listen_in_use", "a program on this host")
    host.supply = msgspec.structs.replace(host.supply, foreign_listeners=())
    assert (await shown(host)).feasibility is Feasibility.COLD
    await host.deploy(DeploymentName("other"), "v3")
    await refused(host, "listen_in_use", "deployment other")


async def test_what_is_shown_follows_the_host_by_itself(make: Make) -> None:
    host = await two_served(make)
    await host.update(NAME, "v2")
    await host.until(NAME, lambda facts: facts.rollback[:1] != ())
    await host.engine.drain(CALLER)
    await host.until(NAME, lambda f: f.rollback[0].feasibility is Feasibility.IMPOSSIBLE)
    await host.engine.undrain(CALLER)
    await host.until(NAME, lambda f: f.rollback[0].feasibility is Feasibility.COLD)


async def test_the_source_is_not_asked_for_a_signature_at_every_look(make: Make) -> None:
    host = await two_served(make)
    await host.update(NAME, "v2")
    _unsigned(host)
    assert (await shown(host)).feasibility is Feasibility.IMPOSSIBLE
    host.releases.unsigned.clear()
    assert (await shown(host)).feasibility is Feasibility.IMPOSSIBLE
    host.clock.advance(61)
    assert (await shown(host)).feasibility is Feasibility.COLD
