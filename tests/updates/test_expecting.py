"""What is told of an update's length comes from what this host has measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.model.reasons import DecidedStrategy, Decision, Strategy
from agent.model.update import Step
from agent.updates.planner.boot_deadline import BOOTS, shape_of
from agent.updates.snapshot.rows import read_rows
from agent.updates.snapshot.snapshot import Estimate
from agent.updates.snapshot.status import deployment_facts
from simulator.simulated_host import NAME, POLICY, SimulatedHost, release


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    yield host
    host.close()


def told(host: SimulatedHost) -> Estimate:
    rows = host.read(lambda tx: read_rows(tx, NAME))
    assert rows is not None
    unknown = Decision(strategy=DecidedStrategy.REFUSE)
    facts = deployment_facts(
        rows, host.observe(), next_update=unknown, rollback=(), missing_secrets=()
    )
    return facts.expected


def in_boot(host: SimulatedHost) -> None:
    """The guest of the update has not come far."""
    host.until(Step.BOOT)
    vm = host.vms[host.current().enclave]
    vm.booted, vm.healthy, vm.healthy_since = False, None, None


def boots(host: SimulatedHost) -> list[float]:
    return host.read(lambda tx: tx.samples(BOOTS, shape_of(release("v1").demand)))


def test_the_first_update_of_a_host_has_nothing_to_go_by(host: SimulatedHost) -> None:
    host.request("v1")
    in_boot(host)
    assert told(host) == Estimate()


def test_the_next_update_is_expected_to_boot_as_long_as_the_one_before(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    (took,) = boots(host)
    host.request("v2")
    boot = told(host).boot
    assert boot is not None
    assert (boot.p50, boot.samples) == (took, 1)
    in_boot(host)
    update, expected = host.current(), told(host)
    assert update.started_at is not None
    assert expected.ready_at == update.started_at.plus(took + POLICY.dwell_s)
    assert expected.downtime is None
    host.until(Step.VERIFY)
    since = host.vms[update.enclave].healthy_since
    assert since is not None
    assert told(host).ready_at == since.plus(POLICY.dwell_s)
    host.until(Step.SOAK)
    assert told(host) == Estimate()


def test_what_is_stopped_first_is_expected_to_be_away_as_long_as_before(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    host.request("v2", strategy=Strategy.STOP_THEN_START)
    host.settle()
    took = host.current().downtime_s
    assert took is not None
    host.request("v3", strategy=Strategy.STOP_THEN_START)
    host.until(Step.BOOT)
    downtime = told(host).downtime
    assert downtime is not None
    assert (downtime.p50, downtime.samples) == (took, 1)
