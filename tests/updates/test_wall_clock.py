"""The wall clock jumps a day, back or forward, in each step of an update: nothing else notices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from agent.model.clock import Instant
from agent.model.lease import Lease
from agent.model.reasons import Strategy
from agent.model.resources import Demand
from agent.model.update import Step
from agent.updates.errors import LeaseExpiredError
from agent.updates.orders import NewLease
from agent.updates.planner.types import Write
from simulator.simulated_host import CALLER, NAME, POLICY, SimulatedHost
from tests.fakes.leasing import leasing_of

DAY_S = 86_400
LEASE_S = 2000
PROMISE = NewLease(demand=Demand(memory_mib=256, vcpus=1), ttl_s=LEASE_S)
PATIENT = dataclasses.replace(POLICY, drain_s=60)


@dataclass
class JumpingHost(SimulatedHost):
    """Its wall clock jumps once, as soon as that step is recorded."""

    at: Step | None = None
    jump_s: float = 0
    passed: list[tuple[float, str]] = field(default_factory=list)  # moments of the boot's clock

    def persist(self, write: Write) -> None:
        super().persist(write)
        if write.update is not None:
            self.pass_(write.update.step)

    def pass_(self, step: Step) -> None:
        self.passed.append((self.clock.now().boottime_s, str(step)))
        if step is self.at:
            self.clock.jump_wall(self.jump_s)
            self.at = None

    def finish(self) -> None:
        while self.current().running:
            self.settle(seconds=2)


@dataclass(frozen=True)
class Story:
    """An update with one connection open to the old version. With a GPU there is a release."""

    name: str
    strategy: Strategy
    gpus: int = 0
    sick: bool = False
    staging: bool = False

    def __str__(self) -> str:
        return self.name


BLUE_GREEN = Story("blue_green", Strategy.BLUE_GREEN, staging=True)
REVERTED = Story("reverted", Strategy.BLUE_GREEN, sick=True)
STOP_THEN_START = Story("stop_then_start", Strategy.STOP_THEN_START, gpus=1, staging=True)
STORIES = (BLUE_GREEN, REVERTED, STOP_THEN_START)


def tell(story: Story, at: Step | None = None, jump_s: float = 0) -> dict[str, Any]:
    """All that the update left, by the clock of the boot."""
    host = JumpingHost(gpus=story.gpus, policy=PATIENT)
    try:
        host.request("v1")
        host.finish()
        ((old_id, old),) = host.vms.items()
        old.connections = 1
        lease = host.loop.run_until_complete(leasing(host).grant(PROMISE, CALLER))
        begin, read = host.clock.now(), host.read(lambda tx: tx.event_bounds())[1]
        host.at, host.jump_s = at, jump_s
        update = host.request("v2", strategy=story.strategy, staging=story.staging)
        host.pass_(update.step)
        names = {update.id: "update", update.enclave: "new", old_id: "old"}
        if story.staging:
            host.until(Step.ACCEPT)
            host.flag(accepted=True)
        if story.sick:
            host.until(Step.SOAK)
            host.sick_tags.add("v2")
        host.finish()
        assert host.at is None, f"the update never came to {at}"
        return {
            "passed": [(moment - begin.boottime_s, step) for moment, step in host.passed],
            "update": told(host.current(), names, begin),
            "events": [
                (event.kind, event.from_, event.to, event.reason)
                for event in host.read(lambda tx: tx.events(read))
                if event.kind != "route"  # whose states are ids
            ],
            "samples": host.read(lambda tx: tx.samples("downtime", NAME)),
            "newest first": [row.tag for row in host.read(lambda tx: tx.updates(NAME))],
            "serves": host.serving_tag(),
            "lease": life_of(host, lease),
        }
    finally:
        host.close()


def told(value: Any, names: dict[str, str], begin: Instant) -> Any:
    """Its fields, moments as seconds of this boot since the beginning, ids by their names."""
    if isinstance(value, Instant):
        return value.boottime_s - begin.boottime_s
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        return {name: told(one, names, begin) for name, one in fields.items()}
    return names.get(value, value) if isinstance(value, str) else value


def leasing(host: SimulatedHost) -> Any:
    return leasing_of(host.clock, host.store, host.supply())


def life_of(host: SimulatedHost, lease: Lease) -> float:
    """Seconds of the boot's clock for which it holds."""
    left = lease.expires_at.since(host.clock.now())
    assert left is not None
    host.clock.advance(left - 1)
    assert host.loop.run_until_complete(leasing(host).get(lease.id)) == lease
    host.clock.advance(1)
    with pytest.raises(LeaseExpiredError):
        host.loop.run_until_complete(leasing(host).get(lease.id))
    lasted = host.clock.now().since(lease.created_at)
    assert lasted is not None
    return lasted


@pytest.mark.parametrize("story", STORIES, ids=str)
def test_a_day_more_or_less_in_any_step_changes_neither_times_nor_order_nor_leases(
    story: Story, figures: list[str]
) -> None:
    plain = tell(story)
    assert plain["lease"] == LEASE_S
    steps = sorted({step for _, step in plain["passed"]})
    for step in steps:
        for jump_s in (-DAY_S, DAY_S):
            assert tell(story, Step(step), jump_s) == plain, f"{jump_s:+} s in {step}"
    update = plain["update"]
    took = update["finished_at"] - update["created_at"]
    figures.append(
        f"wall clock a day back and a day forward in each of {len(steps)} steps of {story}: "
        f"downtime {update['downtime_s']} s, {update['reset_connections']} reset, "
        f"{took:.0f} s in all, as without a jump"
    )


def test_together_these_stories_pass_every_step() -> None:
    assert {step for story in STORIES for _, step in tell(story)["passed"]} == set(Step)
