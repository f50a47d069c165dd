"""Whole updates on a simulated host, with everything that the planner was asked on the way.

The host is the suite's own (`tests/fakes`): above it the real planner, admission and rows.
"""

from __future__ import annotations

import asyncio

from agent.model.reasons import Strategy
from agent.model.update import Step
from agent.updates.planner.plan import plan
from agent.updates.planner.types import Plan, Situation
from simulator.simulated_host import SimulatedHost

Asked = list[tuple[Situation, Plan]]
_MOMENT_S = 2


async def rehearse() -> Asked:
    """What was asked and answered in whole updates of every kind, those that fail included."""
    return await asyncio.to_thread(_rehearse)  # the host has a loop of its own


def _rehearse() -> Asked:
    asked: Asked = []

    def told(s: Situation) -> Plan:
        answer = plan(s)
        asked.append((s, answer))
        return answer

    for story in (_every_strategy, _staged, _failing, _reverted, _relaunched):
        host = SimulatedHost(planner=told)
        try:
            story(host)
        finally:
            host.close()
    return asked


def _update(host: SimulatedHost, tag: str, **options: object) -> None:
    host.request(tag, **options)
    _finish(host)


def _finish(host: SimulatedHost) -> None:
    """Only until the update is over: what rests afterwards is no step of it."""
    while host.current().running:
        host.settle(seconds=_MOMENT_S)


def _every_strategy(host: SimulatedHost) -> None:
    _update(host, "v1")
    _update(host, "v2")
    _update(host, "v3", strategy=Strategy.STOP_THEN_START)


def _staged(host: SimulatedHost) -> None:
    _update(host, "v1")
    for flag in ("accepted", "cancel_requested"):
        host.request("v2", staging=True)
        host.until(Step.ACCEPT)
        host.flag(**{flag: True})
        _finish(host)


def _failing(host: SimulatedHost) -> None:
    host.sick_tags.add("v2")
    _update(host, "v1")
    _update(host, "v2")


def _reverted(host: SimulatedHost) -> None:
    _update(host, "v1")
    host.request("v2")
    host.until(Step.SOAK)
    host.sick_tags.add("v2")
    _finish(host)


def _relaunched(host: SimulatedHost) -> None:
    """The old version dies while the new one boots."""
    _update(host, "v1")
    (old,) = host.vms
    host.request("v2")
    host.until(Step.BOOT)
    host.die(old)
    _finish(host)
