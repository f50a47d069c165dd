"""The real leasing on a store in memory, for a host of a given size; releases by their tag."""

from __future__ import annotations

from collections.abc import Callable

from agent.capacity.supply import HostSupply
from agent.model.release import Release
from agent.releases.port import ReleaseNotFoundError, ReleaseSourceError
from agent.store.port import Store
from agent.updates.admission.leases import Leasing
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.simulated_host import release

SUPPLY = HostSupply(
    memory_mib=4096,
    vcpus=8,
    addresses=tuple(f"10.9.0.{n}" for n in range(2, 10)),
    disk_free_mib=100_000,
)


class TaggedReleases:
    """Every tag is there, but those that begin with `missing` or `offline`."""

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        if tag.startswith("missing"):
            raise ReleaseNotFoundError(f"no release {tag} of {repo} at the source")
        if tag.startswith("offline"):
            raise ReleaseSourceError("the source does not answer")
        return release(tag)

    async def require_signed(self, repo: str, tag: str, digest: str) -> None:
        """Nothing is required."""


def leasing_of(
    clock: ManualClock,
    store: Store | None = None,
    supply: HostSupply = SUPPLY,
    changed: Callable[[], None] = lambda: None,
) -> Leasing:
    async def now() -> HostSupply:
        return supply

    return Leasing(
        store or MemoryStore(clock.now),
        clock,
        TaggedReleases(),  # type: ignore[arg-type]  # resolves, and is asked for nothing else
        supply=now,
        changed=changed,
    )
