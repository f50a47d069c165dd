"""Images that do not hear their power button: no grace for them, told before, and promised so."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agent.model.power_button import NOT_ASKED, Press
from agent.model.reasons import DecidedStrategy, ReasonCode, Strategy
from agent.model.update import UpdateStatus
from agent.updates.admission.downtimes import read_downtimes
from agent.updates.orders import Change, PlanQuestion
from agent.updates.planner.downtimes import Downtimes, promised
from agent.updates.planner.types import Policy
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.simulated_host import NAME, release

GRACE_S = 60.0
POLICY = Policy(dwell_s=0, soak_s=0, drain_s=0, stop_grace_s=GRACE_S)
STOP = Strategy.STOP_THEN_START


async def made(make: Make, version: str = "0.12.0", *, volumes: int = 0) -> InstantHost:
    """A host whose releases have this image version, and that many writable volumes."""
    host = await make(policy=POLICY)
    for tag in ("v1", "v2", "v3"):
        plain = release(tag)
        demand = msgspec.structs.replace(plain.demand, writable_volumes=volumes)
        host.releases.made[tag] = msgspec.structs.replace(
            plain, cvm_version=version, demand=demand
        )
    return host


def stops(host: InstantHost) -> list[float]:
    seen, host.vms.graces = host.vms.graces, []
    return seen


async def plan_of(host: InstantHost, **asked: Any) -> Any:
    return await host.engine.plan(PlanQuestion(deployment=NAME, tag="v2", **asked))


@pytest.mark.parametrize("version", ["0.11.0", "0.11.7", "v0.11.2@sha256:" + "a" * 64])
@pytest.mark.parametrize("how", ["blue_green", "stop_then_start", "stop", "delete"])
async def test_an_image_without_a_driver_for_the_button_is_given_no_grace(
    make: Make, version: str, how: str
) -> None:
    host = await made(make, version)
    await host.deploy(NAME, "v1")
    if how in ("stop", "delete"):
        await getattr(host.engine, how)(NAME, CALLER)
        async with asyncio.timeout(20):
            while host.vms.running:
                await asyncio.sleep(0.01)
    else:
        done = await host.update(NAME, "v2", strategy=Strategy(how))
        assert done.status is UpdateStatus.COMPLETED
    assert stops(host) == [0]
    events = await host.engine.events(0)
    assert NOT_ASKED in [event.reason for event in events]


async def test_an_image_that_hears_gets_the_whole_grace(make: Make) -> None:
    host = await made(make)
    host.vms.press = Press.HEARD
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v2", strategy=STOP)
    assert stops(host) == [GRACE_S]


async def test_an_ignored_press_is_the_last_and_a_restart_does_not_forget_it(make: Make) -> None:
    host = await made(make)
    host.vms.press = Press.IGNORED
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v2", strategy=STOP)
    assert stops(host) == [GRACE_S]
    await host.restart()
    await host.update(NAME, "v3", strategy=STOP)
    assert stops(host) == [0]
    told = [event for event in await host.engine.events(0) if event.kind == "image"]
    assert [(one.to, one.reason) for one in told] == [
        ("power button ignored", "image version 0.12.0")
    ]


async def test_a_press_that_was_unclear_is_made_again(make: Make) -> None:
    host = await made(make)
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v2", strategy=STOP)
    await host.update(NAME, "v3", strategy=STOP)
    assert stops(host) == [GRACE_S, GRACE_S]


async def test_one_deployment_does_not_condemn_a_version_that_was_heard(make: Make) -> None:
    host = await made(make)
    other = type(NAME)("other")
    await host.deploy(NAME, "v1")
    await host.finish(await host.engine.deploy(new(other, "v1", 9443), CALLER))
    for name, press in ((other, Press.HEARD), (NAME, Press.IGNORED)):
        host.vms.press = press
        await host.update(name, "v2", strategy=STOP)
    assert stops(host) == [GRACE_S, GRACE_S]
    await host.update(NAME, "v3", strategy=STOP)
    await host.update(other, "v3", strategy=STOP)
    assert stops(host) == [0, GRACE_S]


async def test_volumes_of_a_deaf_image_are_told_in_the_plan_and_in_the_update(make: Make) -> None:
    host = await made(make, "0.11.0", volumes=2)
    await host.deploy(NAME, "v1")
    planned = await plan_of(host)
    assert planned.strategy is DecidedStrategy.STOP_THEN_START
    (reason,) = [one for one in planned.reasons if one.code is ReasonCode.UNCLEAN_STOP]
    assert "unclean stop" in reason.detail
    assert "2 writable volumes" in reason.detail
    update = await host.engine.update(NAME, Change(tag="v2"), CALLER)
    assert reason in update.reasons


@pytest.mark.parametrize(("version", "volumes"), [("0.11.0", 0), ("0.12.0", 1)])
async def test_a_stop_that_is_clean_is_no_warning(make: Make, version: str, volumes: int) -> None:
    host = await made(make, version, volumes=volumes)
    await host.deploy(NAME, "v1")
    codes = [one.code for one in (await plan_of(host, strategy=STOP)).reasons]
    assert ReasonCode.UNCLEAN_STOP not in codes


async def test_a_refusal_has_no_warning(make: Make) -> None:
    host = await made(make, "0.11.0", volumes=1)
    await host.deploy(NAME, "v1")
    planned = await plan_of(host, strategy=Strategy.BLUE_GREEN)
    assert planned.refused
    assert ReasonCode.UNCLEAN_STOP not in [one.code for one in planned.reasons]


async def test_the_promise_counts_the_grace_only_where_it_is_waited_for(make: Make) -> None:
    promises = {}
    for version in ("0.11.0", "0.12.0"):
        host = await made(make, version)
        await host.deploy(NAME, "v1")
        promises[version] = (await plan_of(host, strategy=STOP)).downtime_estimate_s
    assert promises["0.12.0"].p90 - promises["0.11.0"].p90 == GRACE_S


async def test_a_grace_that_was_waited_in_vain_is_not_promised_again(make: Make) -> None:
    host = await made(make)
    host.vms.press = Press.IGNORED
    host.vms.stopping = lambda: host.clock.advance(GRACE_S)
    await host.deploy(NAME, "v1")
    done = await host.update(NAME, "v2", strategy=STOP)
    assert done.downtime_s is not None
    assert done.downtime_s >= GRACE_S
    promise = (await plan_of(host, strategy=STOP)).downtime_estimate_s
    assert promise.samples == 1
    assert promise.p90 < GRACE_S
    host.vms.stopping = lambda: None
    await host.update(NAME, "v3", strategy=STOP)
    found = await host.runtime.parts.store.read(lambda tx: read_downtimes(tx, NAME, "0.12.0"))
    assert found.asked[0] >= GRACE_S
    assert found.ended[0] < GRACE_S


def test_a_measured_stop_is_added_to_what_follows_it() -> None:
    found = Downtimes(rests=(10.0, 12.0), asked=(7.0,), ended=(0.5,))
    asked, ended = (promised(found, GRACE_S, deaf=deaf).total for deaf in (False, True))
    assert asked is not None
    assert ended is not None
    assert (asked.p50, asked.samples) == (17.0, 2)
    assert ended.p50 == 10.5


def test_totals_of_an_older_agent_are_promised_less_a_grace_that_is_not_waited_for() -> None:
    found = Downtimes(totals=(75.0, 20.0))
    assert promised(found, GRACE_S, deaf=False).history == [75.0, 20.0]
    assert promised(found, GRACE_S, deaf=True).history == [15.0, 20.0]


def test_without_any_history_there_is_nothing_to_promise_by() -> None:
    assert promised(Downtimes(), GRACE_S, deaf=False).total is None


async def test_a_row_of_an_older_agent_is_asked(make: Make) -> None:
    host = await made(make, "0.11.0")
    await host.deploy(NAME, "v1")

    def forget_version(tx: Any) -> None:
        row = tx.revision(NAME, 1)
        tx.put_revision(msgspec.structs.replace(row, image_version=None))

    await host.runtime.parts.store.transact(forget_version)
    await host.update(NAME, "v2", strategy=STOP)
    assert stops(host) == [GRACE_S]


async def test_what_cannot_be_read_counts_as_nothing_known(make: Make) -> None:
    host = await made(make)
    await host.runtime.parts.store.transact(lambda tx: tx.set_meta("power_button 0.12.0", "{]"))
    await host.deploy(NAME, "v1")
    await host.update(NAME, "v2", strategy=STOP)
    assert stops(host) == [GRACE_S]
