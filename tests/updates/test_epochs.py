"""The coordinator's epoch: never back, and never so far ahead that nobody could follow."""

from __future__ import annotations

import pytest

from agent.updates.admission.audit import GENERATION, MOST_GENERATIONS
from agent.updates.errors import StaleEpochError
from agent.updates.orders import Caller
from simulator.instant_host import CALLER, Make

WHO = "spiffe://fleet.test/coordinator"
FIRST = 3 * GENERATION + 17
LEAP = MOST_GENERATIONS * GENERATION


def said(epoch: int) -> Caller:
    return Caller(name=WHO, epoch=epoch)


async def test_a_leap_is_refused_and_told_and_a_reset_lets_it_in(make: Make) -> None:
    host = await make()
    engine = host.engine
    await engine.see_epoch(said(FIRST))  # whoever has seen none takes the first
    await engine.see_epoch(said(FIRST + LEAP))
    for epoch, code in ((FIRST + 2 * LEAP + 1, "epoch_leap"), (FIRST, "stale_epoch")):
        with pytest.raises(StaleEpochError) as refused:
            await engine.see_epoch(said(epoch))
        assert refused.value.code == code
        assert "coordinator-epoch reset" in str(refused.value)
        with pytest.raises(StaleEpochError):
            await engine.drain(said(epoch))
    assert not engine.snapshot.host.draining
    (problem,) = [one for one in engine.snapshot.problems if one.code == "epoch_leap"]
    assert WHO in (problem.detail or "")
    assert await engine.reset_epoch(CALLER) == FIRST + LEAP
    await engine.see_epoch(said(FIRST + 9 * LEAP))
    assert not [one for one in engine.snapshot.problems if one.code == "epoch_leap"]
    events = [one for one in await engine.events(0, 100) if one.kind == "coordinator_epoch"]
    assert [one.to for one in events][-2:] == ["0", str(FIRST + 9 * LEAP)]
