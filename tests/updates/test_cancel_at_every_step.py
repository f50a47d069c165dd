"""A cancel at every moment of an update: what is left is whole, and says what it is."""

from __future__ import annotations

import pytest

from agent.model.reasons import Strategy
from agent.model.revision import DeploymentStatus
from agent.model.update import Decided, Step, Update, UpdateStatus
from simulator.simulated_host import SimulatedHost
from tests.fakes.invariants import at_rest, broken
from tests.fakes.moments import CASES, Case, at_every_moment

_BEFORE_THE_STOP = (Step.PREPARE, Step.ACCEPT)


def cancel(host: SimulatedHost) -> None:
    """As the service does: refused once it is decided otherwise."""
    if host.current().running and host.current().decided is Decided.UNDECIDED:
        host.flag(cancel_requested=True)


def after_stop(update: Update) -> bool:
    return update.strategy is Strategy.STOP_THEN_START and update.step not in _BEFORE_THE_STOP


def check(host: SimulatedHost, before: Update) -> None:
    update, vms = host.current(), len(host.vms)
    if before.decided is not Decided.UNDECIDED:
        assert update.status is UpdateStatus.COMPLETED
        assert (host.serving_tag(), host.status()) == ("v2", DeploymentStatus.RUNNING)
    elif after_stop(before):
        assert update.status is UpdateStatus.FAILED
        assert update.fault is not None
        assert (update.fault.code, update.fault.step) == ("cancelled_after_stop", before.step)
        assert host.deployment().fault == update.fault
        assert (host.serving_tag(), host.status(), vms) == (None, DeploymentStatus.FAILED, 0)
        assert host.read(lambda tx: tx.enclaves()) == []
    elif before.strategy is Strategy.FRESH:
        assert update.status is UpdateStatus.CANCELLED
        assert (host.serving_tag(), host.status(), vms) == (None, DeploymentStatus.STOPPED, 0)
    else:
        assert update.status is UpdateStatus.CANCELLED
        assert (host.serving_tag(), host.status(), vms) == ("v1", DeploymentStatus.RUNNING, 1)


@pytest.mark.parametrize("crash", [False, True], ids=["", "crash"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cancel_at_any_moment_leaves_one_whole_thing(case: Case, crash: bool) -> None:
    seen = set()
    for host, before in at_every_moment(case, cancel):
        seen.add(before.step)
        where = f"cancelled in {before.step}: {before.state}"
        if crash:
            host.crash()
        in_force = host.data_plane
        host.settle(seconds=70)
        assert (at_rest(host), broken(host)) == ([], []), where
        check(host, before)
        if host.current().status is UpdateStatus.CANCELLED and in_force is not None:
            assert host.data_plane == in_force, where
        host.request("v3" if host.serving_tag() else "v2")
        host.settle(seconds=80)
        assert host.current().status is UpdateStatus.COMPLETED, where
        assert host.status() is DeploymentStatus.RUNNING, where
    expected = {Step.PREPARE, Step.LAUNCH, Step.BOOT, Step.VERIFY}
    if case.strategy is Strategy.STOP_THEN_START:
        expected |= {Step.STOP_OLD}
    assert seen >= expected
