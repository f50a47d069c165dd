"""Who is sent a deployment's METRICS_API_KEY follows from what evidence bound."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agent.attestation.port import Verdict
from agent.probes.guest_metrics import METRICS_API_KEY, MetricsAccess
from agent.probes.port import ProbeTarget
from simulator.instant_host import CALLER, POLICY, InstantHost, Make, new
from simulator.simulated_host import NAME

TOKEN = "s3cret-token"


async def asked(make: Make, attested: bool | None, secrets: dict[str, str]) -> ProbeTarget:
    """How a deployment that serves is probed; its guest shows the TLS key `key`."""
    policy = dataclasses.replace(POLICY, reverify_s=60 if attested else None)
    host: InstantHost = await make(policy=policy)
    targets: list[ProbeTarget] = []
    watch = host.probes.watch

    def note(target: ProbeTarget) -> None:
        targets.append(target)
        watch(target)

    async def verify(*_: Any) -> Verdict:
        return Verdict(attested=attested)

    host.probes.watch = note  # type: ignore[method-assign]
    host.runtime.parts.attestation.verify = verify  # type: ignore[method-assign]
    await host.finish(await host.engine.deploy(new(NAME, "v1", secrets=secrets), CALLER))
    await host.runtime.refresh(NAME)
    return targets[-1]


async def test_without_the_secret_there_is_no_access(make: Make) -> None:
    assert (await asked(make, True, {})).metrics_access is None


@pytest.mark.parametrize(("attested", "bound"), [(True, "key"), (None, None)])
async def test_it_is_for_the_key_that_evidence_bound_and_for_none_where_nothing_is_claimed(
    make: Make, attested: bool | None, bound: str | None
) -> None:
    target = await asked(make, attested, {METRICS_API_KEY: TOKEN})
    assert target.metrics_access == MetricsAccess(token=TOKEN, bound_key=bound)
    assert TOKEN not in repr(target)
