"""What tenants' limits refused, and that there are none, in what is published."""

from __future__ import annotations

import asyncio

from agent.model.ids import DeploymentName
from agent.traffic.port import Refused
from simulator.instant_host import InstantHost, Make

ONE, TWO = DeploymentName("one"), DeploymentName("two")


async def shown_problems(host: InstantHost, *, with_code: bool) -> str:
    """The sentence about limits once it is there, or once it is gone."""
    async with asyncio.timeout(20):
        while True:
            found = [one for one in host.engine.snapshot.problems if "limits" in one.code]
            if bool(found) is with_code:
                return found[0].detail if found else ""
            await asyncio.sleep(0.05)


async def test_refusals_are_told_by_deployment_and_limit(make: Make) -> None:
    host = await make()
    await host.deploy(ONE, "v1", 8443)
    await host.deploy(TWO, "v1", 8444)
    addresses = {
        name: [one.row.address for one in facts.enclaves]
        for name, facts in host.engine.snapshot.deployments.items()
    }
    await count(host)
    guest = addresses[ONE][0]
    host.traffic.has_refused = Refused(
        counts={guest: {"guest_flows": 5}, "two": {"source_connections": 2}}
    )
    await count(host)
    await host.until(ONE, lambda facts: facts.refused == {"guest_flows": 5})
    await host.until(TWO, lambda facts: facts.refused == {"source_connections": 2})


async def test_a_data_plane_without_limits_is_a_problem_until_it_has_them(make: Make) -> None:
    host = await make()
    host.traffic.has_refused = Refused(unlimited="the kernel cannot count")
    await host.deploy(ONE, "v1")
    assert await shown_problems(host, with_code=True) == "the kernel cannot count"
    host.traffic.has_refused = Refused()
    await host.update(ONE, "v2")
    await shown_problems(host, with_code=False)


async def count(host: InstantHost) -> None:
    data_plane = host.runtime.data_plane
    await data_plane.count(host.runtime.publisher.rows.values())
