"""What is summed once answers as what is summed anew, whoever is gone and whatever is redeemed."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from agent.capacity.accounts import Accounts
from agent.capacity.ledger import room
from agent.capacity.supply import Holding, HostSupply
from agent.model.clock import Instant
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import Strategy
from agent.model.resources import Demand, Listen

NOW = Instant(boot_id="b", boottime_s=100.0, wall=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
LATER = Instant(boot_id="b", boottime_s=900.0, wall=NOW.wall + dt.timedelta(seconds=800))
NAMES = [DeploymentName(name) for name in ("api", "web", "www")]
ENCLAVES = [EnclaveId(f"e{number}") for number in range(6)]
ADDRESSES = tuple(f"10.0.0.{number}" for number in range(2, 10))
DEVICES = [Bdf(f"0000:0{number}:00.0") for number in range(4)]

sizes = st.integers(0, 900)
devices = st.lists(st.sampled_from(DEVICES), max_size=2, unique=True).map(tuple)
used = st.dictionaries(st.sampled_from(ENCLAVES), sizes, max_size=4)
enclaves = st.lists(st.sampled_from(ENCLAVES), max_size=2, unique=True)


@st.composite
def holdings(draw: st.DrawFn) -> list[Holding]:
    there = draw(st.lists(st.sampled_from(ENCLAVES), max_size=6, unique=True))
    return [
        Holding(
            enclave=enclave,
            deployment=draw(st.sampled_from(NAMES)),
            memory_mib=draw(sizes),
            vcpus=draw(st.integers(0, 4)),
            address=draw(st.sampled_from((None, *ADDRESSES))),
            gpus=draw(devices),
            disk_mib=draw(sizes),
            tee_ids=draw(st.integers(0, 1)),
            replaces=tuple(draw(st.one_of(st.just([]), enclaves))),
        )
        for enclave in there
    ]


@st.composite
def leases(draw: st.DrawFn) -> list[Lease]:
    return [
        Lease(
            id=LeaseId(f"l{number}"),
            holder="local:0",
            deployment=draw(st.sampled_from((None, *NAMES))),
            strategy=draw(st.sampled_from([Strategy.BLUE_GREEN, Strategy.STOP_THEN_START])),
            demand=Demand(memory_mib=draw(sizes), vcpus=1, disk_mib=draw(sizes)),
            gpus=draw(devices),
            address=draw(st.sampled_from((None, *ADDRESSES))),
            created_at=NOW,
            expires_at=draw(st.sampled_from([NOW, LATER])),
        )
        for number in range(draw(st.integers(0, 2)))
    ]


@st.composite
def supplies(draw: st.DrawFn) -> HostSupply:
    return HostSupply(
        memory_mib=4000,
        vcpus=16,
        addresses=ADDRESSES,
        disk_free_mib=3000,
        mem_available_mib=draw(st.sampled_from([None, 500, 3500])),
        resident_mib=draw(used),
        written_mib=draw(used),
        tee_ids=4,
        foreign_listeners=(Listen(address=draw(st.sampled_from(ADDRESSES)), port=443),),
    )


@given(supplies(), holdings(), leases(), st.lists(st.tuples(enclaves, st.integers(-1, 1))))
def test_what_is_free_is_the_same(
    supply: HostSupply,
    held: list[Holding],
    promised: list[Lease],
    questions: list[tuple[list[EnclaveId], int]],
) -> None:
    accounts = Accounts(supply, holdings=held, leases=promised, now=NOW)
    for gone, number in questions:
        redeemed = LeaseId(f"l{number}") if number >= 0 else None
        anew = room(supply, held, promised, NOW, gone=gone, redeemed=redeemed)
        assert accounts.room(gone=gone, redeemed=redeemed) == anew
