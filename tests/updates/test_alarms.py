"""What a person is told of a deployment that does not serve, or of a QEMU that does not end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.enclaves.port import VmPhase
from agent.model.reasons import Strategy
from agent.model.revision import Wish
from agent.model.update import Step
from agent.updates.planner.alarm import Alarm
from agent.updates.planner.alarms import alarms
from agent.updates.planner.types import ActionKind
from agent.updates.snapshot.rows import read_rows, situation
from simulator.simulated_host import NAME, SimulatedHost


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    host.serve("v1")
    yield host
    host.close()


def told(host: SimulatedHost, not_taken: str | None = None) -> dict[str, Alarm]:
    rows = host.read(lambda tx: read_rows(tx, NAME))
    assert rows is not None
    return alarms(situation(rows, host.observe()), not_taken)


def test_nothing_is_wrong_with_what_serves_or_was_stopped(host: SimulatedHost) -> None:
    assert told(host) == {}
    host.wish(Wish.STOP)
    host.settle()
    assert told(host) == {}


def test_an_active_enclave_that_ended_is_told_until_it_serves_again(host: SimulatedHost) -> None:
    (key,) = host.vms
    host.die(key)
    host.think()
    assert told(host)["outage"].code == "not_serving"
    assert "ended by itself" in told(host)["outage"].detail
    host.settle()
    assert host.serving_tag() == "v1"
    assert told(host) == {}


def test_an_old_version_that_dies_while_the_new_one_boots_is_told(host: SimulatedHost) -> None:
    (blue,) = host.vms
    host.request("v2")
    host.until(Step.BOOT)
    host.die(blue)
    host.think()
    assert "outage" in told(host)
    host.settle()
    assert host.serving_tag() == "v2"
    assert told(host) == {}


def test_the_outage_of_a_stop_then_start_is_meant(host: SimulatedHost) -> None:
    host.sick_tags.add("v2")
    host.request("v2", strategy=Strategy.STOP_THEN_START)
    host.until(Step.BOOT)
    assert host.serving_tag() is None
    assert told(host) == {}
    host.settle()
    alarm = told(host)["outage"]
    assert "it failed (unhealthy)" in alarm.detail
    assert "roll back" in alarm.mend


def test_a_qemu_that_does_not_end_is_told_by_its_enclave(host: SimulatedHost) -> None:
    (key,) = host.vms
    host.vms[key].phase = VmPhase.STUCK
    alarm = told(host)[f"stuck:{key}"]
    assert (alarm.code, alarm.severity) == ("enclave_stuck", "error")
    assert key in alarm.detail


def test_a_route_that_the_data_plane_does_not_take_is_told_until_it_does(
    host: SimulatedHost,
) -> None:
    host.broken = {ActionKind.APPLY_ROUTE}
    host.request("v2", strategy=Strategy.STOP_THEN_START)
    host.until(Step.STOP_OLD)
    alarm = told(host, "no space left")["route"]
    assert (alarm.code, alarm.severity) == ("traffic_unavailable", "error")
    assert "no space left" in alarm.detail
    host.broken = set()
    host.settle()
    assert told(host, "no space left") == {}
