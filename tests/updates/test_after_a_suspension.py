"""The host was suspended: health and evidence are from before it, and are looked at anew."""

from __future__ import annotations

import dataclasses

import pytest

from agent.attestation.port import Verdict
from agent.attestation.unattested import Unattested
from agent.host.wake import Wake
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.reasons import Strategy
from agent.model.update import Step, UpdateStatus
from agent.updates.engine.resumption import Resumption
from agent.updates.engine.wakeups import Wakeups
from agent.updates.orders import Change
from agent.updates.planner.types import Judged
from agent.updates.snapshot.snapshot import DeploymentFacts
from simulator.instant_host import CALLER, POLICY, Make
from simulator.manual_clock import ManualClock

NAME = DeploymentName("web")
HOUR_S = 3600
ATTESTED = dataclasses.replace(POLICY, drain_s=2 * HOUR_S, reverify_s=300)
SOAKS = {
    Strategy.BLUE_GREEN: dataclasses.replace(ATTESTED, soak_s=600),
    Strategy.STOP_THEN_START: dataclasses.replace(ATTESTED, dwell_s=600),  # it becomes the soak
}


class Judging(Unattested):
    """Evidence is good, as often as it is judged."""

    times = 0

    async def verify(self, *_: object) -> Verdict:
        self.times += 1
        return Verdict(attested=True)


def in_its_soak(facts: DeploymentFacts) -> bool:
    return facts.update is not None and facts.update.step is Step.SOAK


@pytest.mark.parametrize("strategy", SOAKS)
async def test_evidence_that_was_good_before_it_is_not_lost_but_judged_anew(
    make: Make, strategy: Strategy
) -> None:
    """It is older than is borne; by that alone an update failed in its soak."""
    gate = Judging()
    host = await make(attestation=gate, policy=SOAKS[strategy])
    await host.deploy(NAME, "v1")
    update = await host.engine.update(NAME, Change(tag="v2", strategy=strategy), CALLER)
    await host.until(NAME, in_its_soak)
    before = gate.times
    host.suspend(HOUR_S)
    update = await host.finish(update)
    assert update.status is UpdateStatus.COMPLETED, update.fault
    assert host.probes.begun_anew == 1
    assert gate.times > before


class Anew:
    """As much of the probes as is asked for."""

    changed = Wake()
    times = 0

    def begin_anew(self) -> None:
        self.times += 1


def test_what_was_refused_stays_refused_and_whoever_rests_is_woken() -> None:
    now = ManualClock().now()
    good, refused = EnclaveId("good"), EnclaveId("refused")
    verdicts = {
        name: Judged("key", Verdict(attested=name == good), now) for name in (good, refused)
    }
    slept = [0.0, HOUR_S]
    suspensions = type("S", (), {"slept_s": lambda _: slept.pop(0)})()
    probes, wakeups = Anew(), Wakeups()
    resumption = Resumption(suspensions, probes, verdicts, wakeups)
    count = wakeups.of(NAME).count
    resumption.look()
    assert (set(verdicts), probes.times, wakeups.of(NAME).count) == ({good, refused}, 0, count)
    resumption.look()
    assert (set(verdicts), probes.times) == ({refused}, 1)
    assert wakeups.of(NAME).count > count
