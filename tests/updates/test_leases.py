"""A lease reserves until a time, is spent once, and what it held comes back however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.capacity.supply import vm_memory_mib
from agent.model.ids import LeaseId
from agent.model.lease import Lease
from agent.model.reasons import ReasonCode, Strategy
from agent.model.resources import Demand
from agent.store.port import Reader
from agent.store.sqlite import SqliteStore
from agent.updates.admission.lease_rows import expire
from agent.updates.admission.leases import Leasing
from agent.updates.errors import FieldError, LeaseExpiredError, RefusedError, UnknownNameError
from agent.updates.orders import NewLease
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.simulated_host import CALLER, NAME, SimulatedHost
from tests.fakes.leasing import leasing_of

ONE = vm_memory_mib(256)
BARE = NewLease(demand=Demand(memory_mib=256, vcpus=1), ttl_s=60)


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    """Room for two enclaves of 256 MiB."""
    made = SimulatedHost(memory_mib=2 * ONE)
    yield made
    made.close()


def leasing(host: SimulatedHost) -> Leasing:
    return leasing_of(host.clock, host.store, host.supply())


def grant(host: SimulatedHost, wanted: NewLease = BARE) -> Lease:
    return host.loop.run_until_complete(leasing(host).grant(wanted, CALLER))


def give_back(host: SimulatedHost, lease: Lease) -> None:
    host.loop.run_until_complete(leasing(host).give_back(lease.id, CALLER))


def get(host: SimulatedHost, lease: Lease) -> Lease:
    return host.loop.run_until_complete(leasing(host).get(lease.id))


def refused(host: SimulatedHost, **options: object) -> list[ReasonCode]:
    with pytest.raises(RefusedError) as error:
        host.request("v2", **options)
    return [reason.code for reason in error.value.reasons]


def claimed(tx: Reader) -> set[tuple[str, str]]:
    return {(claim.key, claim.holder) for claim in tx.claims() if claim.kind != "listen"}


def lease_events(host: SimulatedHost) -> list[str]:
    return [e.to or "" for e in host.read(lambda tx: tx.events(0)) if e.kind == "lease"]


def test_a_lease_holds_an_address_and_its_amounts_against_everybody_else(
    host: SimulatedHost,
) -> None:
    lease = grant(host)
    assert (lease.strategy, lease.holder) == (Strategy.FRESH, CALLER.name)
    assert lease.address is not None
    assert host.read(claimed) == {(lease.address, lease.id)}
    grant(host)
    assert refused(host) == [ReasonCode.MEMORY_INSUFFICIENT]
    give_back(host, lease)
    host.request("v1")
    assert lease_events(host) == ["granted", "granted", "given back"]


def test_a_lease_that_is_spent_hands_over_what_it_promised_and_is_gone(
    host: SimulatedHost,
) -> None:
    lease = grant(host, NewLease(deployment=NAME, tag="v1", ttl_s=60))
    grant(host)  # the host is full
    update = host.request("v1", lease=lease.id)
    (row,) = host.read(lambda tx: tx.enclaves())
    assert row.address == lease.address
    assert (row.address, row.id) in host.read(claimed)
    assert refused(host, lease=lease.id) == [ReasonCode.UPDATE_IN_PROGRESS]
    host.settle()
    assert host.current().id == update.id
    assert refused(host, lease=lease.id) == [ReasonCode.LEASE_EXPIRED]
    spent = [e for e in host.read(lambda tx: tx.events(0)) if e.to == "spent"]
    assert [(event.update, event.actor) for event in spent] == [(update.id, CALLER.name)]
    with pytest.raises(UnknownNameError):
        get(host, lease)


def test_an_expired_lease_is_in_nobodys_way_before_anyone_has_swept_it(
    host: SimulatedHost,
) -> None:
    lease = grant(host)
    grant(host)
    host.clock.advance(60)
    host.request("v1")
    (row,) = host.read(lambda tx: tx.enclaves())
    assert row.address == lease.address
    assert host.read(claimed) == {(row.address, row.id)}
    assert lease_events(host) == ["granted", "granted", "expired", "expired"]
    with pytest.raises(LeaseExpiredError):
        get(host, lease)
    with pytest.raises(LeaseExpiredError):
        give_back(host, lease)


def test_a_lease_lives_on_the_boots_clock_alone(host: SimulatedHost) -> None:
    lease = grant(host)
    for jump in (-86_400, 2 * 86_400):
        host.clock.jump_wall(jump)
        assert get(host, lease) == lease
    host.clock.advance(59)
    assert get(host, lease) == lease
    host.clock.reboot("another")
    with pytest.raises(LeaseExpiredError):
        get(host, lease)
    assert refused(host, lease=lease.id) == [ReasonCode.LEASE_EXPIRED]
    host.transact(lambda tx: expire(tx, host.clock.now()))
    events = host.read(lambda tx: tx.events(0))
    assert events[-1].reason == f"lease {lease.id}: the host was rebooted"


def test_a_demand_beyond_the_lease_is_refused_with_the_numbers(host: SimulatedHost) -> None:
    lease = grant(host, msgspec.structs.replace(BARE, demand=Demand(memory_mib=100, vcpus=1)))
    with pytest.raises(RefusedError) as error:
        host.request("v1", lease=lease.id)
    (reason,) = error.value.reasons
    assert (reason.code, reason.needed, reason.available) == (
        *(ReasonCode.MEMORY_INSUFFICIENT, 256, 100),
    )
    assert lease.id in reason.detail
    assert get(host, lease) == lease


def test_a_lease_of_another_deployment_is_refused(host: SimulatedHost) -> None:
    host.serve("v1")
    lease = grant(host, NewLease(deployment="other", tag="v1", ttl_s=60))
    assert refused(host, lease=lease.id) == [ReasonCode.LEASE_EXPIRED]


def test_a_lease_of_a_second_copy_is_never_spent_on_an_outage(host: SimulatedHost) -> None:
    host.serve("v1")
    lease = grant(host, NewLease(deployment=NAME, ttl_s=6000))
    assert lease.strategy is Strategy.BLUE_GREEN
    host.memory_mib = ONE  # the host lost half of its memory
    assert refused(host, lease=lease.id) == [
        ReasonCode.STRATEGY_UNAVAILABLE,
        ReasonCode.MEMORY_INSUFFICIENT,
    ]
    by_name = host.request("v2", lease=lease.id, strategy=Strategy.STOP_THEN_START)
    assert by_name.strategy is Strategy.STOP_THEN_START


def test_a_lease_of_a_stop_then_start_costs_nothing_beside_what_it_replaces(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    grant(host)  # full
    lease = grant(host, NewLease(deployment=NAME, ttl_s=6000))
    (old,) = host.read(lambda tx: tx.enclaves())
    assert (lease.strategy, lease.address) == (Strategy.STOP_THEN_START, old.address)
    assert (old.address, old.id) in host.read(claimed)
    host.request("v2", lease=lease.id)
    host.settle()
    (new,) = host.read(lambda tx: tx.enclaves())
    assert host.serving_tag() == "v2"
    assert new.address == old.address
    assert (new.address, new.id) in host.read(claimed)


def test_a_lease_reserves_capacity_and_asks_for_no_secrets_or_listeners(
    host: SimulatedHost,
) -> None:
    for wanted in (NewLease(ttl_s=1), msgspec.structs.replace(BARE, tag="v1")):
        with pytest.raises(FieldError):
            grant(host, wanted)
    with pytest.raises(UnknownNameError):
        grant(host, NewLease(deployment=NAME, ttl_s=1))
    with pytest.raises(RefusedError) as error:
        grant(host, NewLease(deployment=NAME, tag="missing", ttl_s=1))
    assert error.value.code == "release_invalid"


def test_only_the_newest_expired_leases_are_remembered(host: SimulatedHost) -> None:
    first = grant(host)
    for _ in range(105):
        host.clock.advance(61)
        last = grant(host)
    host.clock.advance(61)
    host.transact(lambda tx: expire(tx, host.clock.now()))
    with pytest.raises(UnknownNameError):
        get(host, first)
    with pytest.raises(LeaseExpiredError):
        get(host, last)


async def test_when_its_time_is_up_a_lease_ends_by_itself_and_once() -> None:
    clock = ManualClock()
    store = MemoryStore(clock.now)
    rings: list[int] = []
    leases = leasing_of(clock, store, changed=lambda: rings.append(1))
    keeper = asyncio.create_task(leases.keep())
    lease = await leases.grant(msgspec.structs.replace(BARE, ttl_s=0.02), CALLER)
    await asyncio.sleep(0.05)
    assert not lease.expired
    assert await store.read(claimed) == {(lease.address, lease.id)}  # the clock stands still
    clock.advance(1)
    other = await leases.grant(BARE, CALLER)
    async with asyncio.timeout(5):
        while len(rings) < 2:
            await asyncio.sleep(0.01)
    assert await store.read(claimed) == {(other.address, other.id)}
    events = [event.to for event in await store.read(lambda tx: tx.events(0))]
    assert sorted(events) == ["expired", "granted", "granted"]
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def test_a_lease_outlives_a_restart_of_the_agent(tmp_path: Path) -> None:
    clock = ManualClock()
    store = await SqliteStore.open(tmp_path / "agent.db", clock.now)
    lease = await leasing_of(clock, store).grant(BARE, CALLER)
    await store.close()
    store = await SqliteStore.open(tmp_path / "agent.db", clock.now)
    assert await leasing_of(clock, store).get(lease.id) == lease
    assert await store.read(claimed) == {(lease.address, lease.id)}
    await leasing_of(clock, store).give_back(LeaseId(lease.id), CALLER)
    assert await store.read(claimed) == set()
    await store.close()
