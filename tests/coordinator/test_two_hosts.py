"""Two hosts, one with room for a second copy and one without, and one coordinator for both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coordinator.rollout import roll_out
from tests.coordinator.test_link import body
from tests.coordinator.wires import elsewhere
from tests.coordinator.world import Coordinator, join, same_end
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import settings
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow, pytest.mark.root]
ROOMY, FULL = "roomy", "full"
VCPUS = {ROOMY: 8, FULL: 1}  # an enclave takes one


@contextlib.asynccontextmanager
async def two_hosts(
    parts: tuple[Path, Path],
) -> AsyncIterator[tuple[Coordinator, dict[str, Daemon]]]:
    """Each in a network namespace of its own; `hello` is not there yet."""
    program, source = parts
    coordinator = Coordinator(place("eac-"), address="0.0.0.0")
    coordinator.start()
    daemons: dict[str, Daemon] = {}
    with contextlib.ExitStack() as stack:
        try:
            for number, (host, vcpus) in enumerate(VCPUS.items()):
                wire = stack.enter_context(elsewhere(number))
                daemon = Daemon(place(), source, settings=settings(program))
                daemons[host] = daemon
                daemon.command = (*wire.enter, *daemon.command)
                daemon.configure(host_id=host, host={"vcpus": vcpus})
                join(daemon, coordinator, rpc="0.0.0.0", seen_as=wire.ours)
            await asyncio.gather(*(daemon.up() for daemon in daemons.values()))
            for host in daemons:
                await coordinator.until(lambda host=host: coordinator.ledger.report(host))
            yield coordinator, daemons
        finally:
            for daemon in daemons.values():
                await daemon.leave()
            coordinator.leave()


async def test_each_host_says_how_it_would_update_and_is_updated_so(
    parts: tuple[Path, Path],
) -> None:
    async with two_hosts(parts) as (coordinator, daemons):
        for host, daemon in daemons.items():
            answer = await coordinator.insist(
                host, "PUT", "/v1/deployments/hello", body(daemon), key="deploy"
            )
            assert answer.status == 202, answer
        await asyncio.gather(*(coordinator.ended(host, "v1") for host in daemons))
        outcomes = await roll_out(coordinator, list(daemons), "v2", print)
        roomy, full = outcomes
        assert roomy.told["strategy"] == roomy.update["strategy"] == "blue_green"
        assert full.told["strategy"] == full.update["strategy"] == "stop_then_start"
        (reason,) = (one for one in full.told["reasons"] if one["code"] == "vcpus_insufficient")
        assert (reason["needed"], reason["available"]) == (1, 0)
        assert roomy.update["downtime_s"] in (None, 0)
        assert full.update["downtime_s"] > 0
        for outcome in outcomes:
            assert outcome.followed[-1] == "completed"
            daemon = daemons[outcome.host]
            await same_end(daemon, coordinator, outcome.host)
            assert await discrepancies(daemon) == []
            updates = (await daemon.get("/v1/deployments/hello/updates")).body["updates"]
            assert [(one["tag"], one["status"]) for one in updates] == [
                ("v2", "completed"),
                ("v1", "completed"),
            ]
