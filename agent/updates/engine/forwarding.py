"""Carries news to whom they concern: what a deployment does follows from its own things alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.host.wake import KeyedWake
from agent.model.ids import DeploymentName, EnclaveId
from agent.updates.engine.wakeups import Wakeups

Known = Mapping[DeploymentName, Collection[EnclaveId]]  # as it is at each moment


async def of_enclaves(changed: KeyedWake[EnclaveId], known: Known, wakeups: Wakeups) -> None:
    """Wake, for ever, the deployments whose enclaves have news."""
    seen = changed.count
    while True:
        seen = await changed.beyond(seen)
        news = changed.take()
        for name, enclaves in known.items():
            if not news.isdisjoint(enclaves):
                wakeups.of(name).notify()


async def of_deployments(
    changed: KeyedWake[DeploymentName], known: Known, wakeups: Wakeups
) -> None:
    """Wake, for ever, the deployments that have news."""
    seen = changed.count
    while True:
        seen = await changed.beyond(seen)
        for name in changed.take() & known.keys():
            wakeups.of(name).notify()
