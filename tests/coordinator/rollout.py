"""What a coordinator does with a fleet: it updates each host by what that host said it would be.

Nothing is assumed of a host: its report says the strategy and why, the update is asked for with
that very strategy (so that a host that changed its mind refuses rather than surprises), and the
reports that follow say how it goes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.coordinator.world import Coordinator

NAME = "hello"
_CAN = {"blue_green", "stop_then_start"}
Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Outcome:
    """`told`: the decision that the host had reported; `update`: how it ended, as reported."""

    host: str
    told: dict[str, Any]
    update: dict[str, Any]
    followed: tuple[str, ...]  # the statuses, as they were reported


async def roll_out(
    coordinator: Coordinator, hosts: Sequence[str], tag: str, say: Say, timeout_s: float = 90
) -> list[Outcome]:
    """Update a deployment on all of them at once, to the end of each."""
    return list(
        await asyncio.gather(*(_one(coordinator, host, tag, say, timeout_s) for host in hosts))
    )


async def _one(
    coordinator: Coordinator, host: str, tag: str, say: Say, timeout_s: float
) -> Outcome:
    told = await _strategy(coordinator, host, timeout_s)
    estimate = told["downtime_estimate_s"]
    say(host, f"says: {told['strategy']}; downtime p50 {estimate['p50']:g} s")
    for reason in told["reasons"]:
        say(host, f"  because: {reason['code']}: {reason['detail']}")
    answer = await coordinator.insist(
        host,
        "POST",
        f"/v1/deployments/{NAME}/updates",
        {"tag": tag, "strategy": told["strategy"]},
        key=f"{NAME}-{tag}-{time.time_ns()}",
        timeout_s=timeout_s,
    )
    if answer.status != 202:
        raise RuntimeError(f"{host} refused: {answer.body}")
    followed: list[str] = []
    deadline = time.monotonic() + timeout_s
    while True:
        update = (coordinator.said(host, NAME) or {}).get("update") or {}
        if update.get("id") == answer.body["id"]:
            if update["status"] not in followed:
                followed.append(update["status"])
                say(host, f"{tag}  {update['status']:<9} step {update['step']}")
            if update["finished_at"]:
                return Outcome(host, told, update, tuple(followed))
        if time.monotonic() > deadline:
            raise RuntimeError(f"{host}: the update is not over after {timeout_s:.0f} s")
        await asyncio.sleep(0.02)


async def _strategy(coordinator: Coordinator, host: str, timeout_s: float) -> dict[str, Any]:
    """What the newest report says that an update would be, once it is one that can be."""

    def decision() -> dict[str, Any]:
        said = coordinator.said(host, NAME)
        return dict(said["next_update"]) if said else {}

    await coordinator.until(lambda: decision().get("strategy") in _CAN, timeout_s)
    return decision()
