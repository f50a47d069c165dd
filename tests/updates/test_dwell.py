"""Ready is who was healthy and attested together, over the very key, for the whole dwell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from agent.attestation.port import Verdict
from agent.model.update import Step, Update
from simulator.simulated_host import POLICY, SimulatedHost

GOOD = Verdict(attested=True)
NOT_YET = Verdict(attested=None, retry=True)
DWELL_S = 30


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    policy = dataclasses.replace(POLICY, dwell_s=DWELL_S, reverify_s=10)
    host = SimulatedHost(policy=policy, evidence=None)
    host.request("v1")
    host.settle(seconds=20, step_s=1)
    assert host.current().step is Step.VERIFY
    yield host
    host.close()


def ready(host: SimulatedHost) -> Update:
    host.settle(seconds=120, step_s=1)
    assert host.current().ready_at is not None
    return host.current()


def waited(host: SimulatedHost, since_s: float) -> float:
    at = ready(host).ready_at
    assert at is not None
    return at.boottime_s - since_s


def now(host: SimulatedHost) -> float:
    return host.clock.now().boottime_s


@pytest.mark.parametrize("before", [None, NOT_YET])
def test_evidence_that_comes_after_health_is_held_for_the_dwell_too(
    host: SimulatedHost, before: Verdict | None
) -> None:
    host.evidence = before
    host.settle(seconds=40, step_s=1)
    host.evidence, came = GOOD, now(host)
    assert waited(host, came) == pytest.approx(DWELL_S, abs=2)


def test_evidence_judged_again_in_the_dwell_does_not_begin_it_anew(host: SimulatedHost) -> None:
    host.evidence, came = GOOD, now(host)
    assert waited(host, came) == pytest.approx(DWELL_S, abs=2)


def test_another_key_begins_it_anew(host: SimulatedHost) -> None:
    host.evidence = GOOD
    host.settle(seconds=20, step_s=1)
    for vm in host.vms.values():
        vm.key = "another"
    changed = now(host)
    assert waited(host, changed) == pytest.approx(DWELL_S, abs=2)


def test_a_probe_that_fails_in_between_begins_it_anew(host: SimulatedHost) -> None:
    host.evidence = GOOD
    host.settle(seconds=20, step_s=1)
    for key in host.vms:
        host.set_health(key, False)
        host.set_health(key, True)
    flapped = now(host)
    assert waited(host, flapped) == pytest.approx(DWELL_S, abs=2)
