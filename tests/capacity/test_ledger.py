"""Inheritance in the ledger, case by case."""

from __future__ import annotations

import datetime as dt

import pytest

from agent.capacity.accounts import Accounts
from agent.capacity.estimate import DEFAULT_DOWNTIME, estimate_downtime
from agent.capacity.supply import Holding, HostSupply
from agent.model.clock import Instant
from agent.model.ids import DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import Strategy
from agent.model.resources import Demand

NOW = Instant(boot_id="b", boottime_s=100.0, wall=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
API = DeploymentName("api")
SUPPLY = HostSupply(memory_mib=10**6, vcpus=20, addresses=("a", "b", "c"), disk_free_mib=0)


def row(enclave: str, vcpus: int, *replaces: str, address: str = "a") -> Holding:
    return Holding(
        enclave=EnclaveId(enclave),
        deployment=API,
        memory_mib=100,
        vcpus=vcpus,
        address=address,
        replaces=tuple(EnclaveId(old) for old in replaces),
    )


@pytest.mark.parametrize(
    ("rows", "held"),
    [
        ([row("old", 5), row("new", 8, "old")], 8),
        ([row("new", 8, "old"), row("old", 5)], 8),
        ([row("old", 5), row("new", 2, "old")], 5),
        ([row("new", 8, "old")], 8),
        ([row("old", 5), row("other", 4), row("new", 8, "old", "other")], 9),
        ([row("old", 5), row("new", 5, "old"), row("second heir", 5, "old")], 10),
        ([row("old", 5), row("new", 5, "old"), row("heir of an heir", 5, "new")], 10),
        ([row("self", 5, "self")], 5),
    ],
)
def test_enclaves_that_never_run_together_count_once_and_all_others_in_full(
    rows: list[Holding], held: int
) -> None:
    left = Accounts(SUPPLY, holdings=rows, now=NOW).free
    assert left.vcpus == 20 - held
    assert left.addresses == 2


def test_a_lease_to_stop_then_start_takes_over_what_its_deployment_holds() -> None:
    lease = Lease(
        id=LeaseId("l"),
        holder="local:0",
        deployment=API,
        strategy=Strategy.STOP_THEN_START,
        demand=Demand(memory_mib=100, vcpus=8),
        gpus=(),
        address="a",
        created_at=NOW,
        expires_at=NOW.plus(60),
    )
    assert Accounts(SUPPLY, holdings=[row("old", 5)], leases=[lease], now=NOW).free.vcpus == 20 - 8
    assert Accounts(SUPPLY, leases=[lease], now=NOW).free.vcpus == 20 - 8


def test_an_estimate_is_the_nearest_rank_of_what_was_measured() -> None:
    estimate = estimate_downtime([float(n) for n in range(10, 0, -1)])
    assert (estimate.p50, estimate.p90, estimate.samples) == (5.0, 9.0, 10)
    assert estimate_downtime([float("nan"), -1.0]) == DEFAULT_DOWNTIME
