"""The outlook: what the next update of each deployment would be, and how far each rollback is.

Recomputed when rows change and now and then, since memory on the host comes and goes; readers see
the newest one. Each `next_update` is true for that deployment alone: only a lease reserves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from agent.capacity.ledger import free, leased, total
from agent.capacity.supply import HostSupply
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy, Decision
from agent.model.resources import Amounts
from agent.model.revision import Deployment, Revision
from agent.model.update import Decided
from agent.releases.port import ReleaseError, Releases, ReleaseSourceError
from agent.store.port import Reader, Store
from agent.updates.admission import holdings, judge, question
from agent.updates.allocation import Options
from agent.updates.gpus import recorded
from agent.updates.published import Feasibility, RollbackOption
from agent.updates.vault import Vault
from agent.updates.warm import warm_enclave

UNKNOWN = Decision(strategy=DecidedStrategy.REFUSE)
NOTHING = Amounts()
_MAX_ROLLBACKS = 8


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the next step could be, host-wide and for each deployment."""

    free: Amounts = NOTHING
    total: Amounts = NOTHING
    leased: Amounts = NOTHING
    next_update: dict[DeploymentName, Decision] = field(default_factory=dict)
    rollback: dict[DeploymentName, tuple[RollbackOption, ...]] = field(default_factory=dict)


class OutlookMaker:
    """Computes outlooks."""

    def __init__(
        self,
        store: Store,
        releases: Releases,
        vault: Vault,
        *,
        supply: Callable[[], Awaitable[HostSupply]],
        is_well: Callable[[Enclave], bool],
        now: Callable[[], Instant],
    ) -> None:
        self._store = store
        self._releases = releases
        self._vault = vault
        self._supply = supply
        self._is_well = is_well
        self._now = now

    async def make(self) -> Outlook:
        """The outlook on this moment."""
        supply, now = await self._supply(), self._now()
        outlook, past = await self._store.read(lambda tx: _decide(tx, supply, now))
        for name, revisions in past.items():
            options = [await self._option(revision, row) for revision, row in revisions]
            outlook.rollback[name] = tuple(options)
        return outlook

    async def _option(self, revision: Revision, warm: Enclave | None) -> RollbackOption:
        feasibility, reason = Feasibility.COLD, None
        missing = self._vault.missing(revision.deployment, revision.secrets)
        if warm is not None and self._is_well(warm):
            feasibility = Feasibility.WARM
        elif missing:
            feasibility = Feasibility.IMPOSSIBLE
            reason = f"values of {', '.join(missing)} are not on this host; supply them again"
        else:
            try:
                release = await self._releases.resolve(
                    revision.repo, revision.tag, revision.release_digest
                )
                if self._releases.local(release) is None:
                    feasibility, reason = Feasibility.FETCH, "its artifacts must be fetched"
            except (ReleaseError, ReleaseSourceError) as error:
                feasibility, reason = Feasibility.IMPOSSIBLE, str(error)
        return RollbackOption(
            revision=revision.number, tag=revision.tag, feasibility=feasibility, reason=reason
        )


def _decide(
    tx: Reader, supply: HostSupply, now: Instant
) -> tuple[Outlook, dict[DeploymentName, list[tuple[Revision, Enclave | None]]]]:
    supply, held, leases = recorded(tx, supply), holdings(tx), tx.leases()
    outlook = Outlook(
        free=free(supply, held, leases, now), total=total(supply), leased=leased(leases, now)
    )
    past: dict[DeploymentName, list[tuple[Revision, Enclave | None]]] = {}
    for deployment in tx.deployments():
        name = deployment.name
        number = deployment.active_revision or deployment.last_revision
        revision = tx.revision(name, number)
        if revision is not None:
            asked = question(tx, name, revision, Options())
            outlook.next_update[name] = judge(tx, asked, supply, now).decision
        past[name] = [
            (revision, warm_enclave(tx, deployment, revision.number))
            for revision in rollback_targets(tx, deployment)
        ]
    return outlook, past


def rollback_targets(tx: Reader, deployment: Deployment) -> list[Revision]:
    """Revisions that once served and do not now, the one that served last first."""
    found: dict[int, Revision] = {}
    for update in tx.updates(deployment.name, limit=200):
        numbers = [update.from_revision]
        if update.decided is Decided.COMPLETE:
            numbers.insert(0, update.revision)
        for number in numbers:
            if number is None or number == deployment.active_revision or number in found:
                continue
            revision = tx.revision(deployment.name, number)
            if revision is not None:
                found[number] = revision
    return list(found.values())[:_MAX_ROLLBACKS]


def needed_digests(tx: Reader) -> frozenset[str]:
    """Releases whose artifacts must stay: of every enclave, and of the newest revisions."""
    needed = set()
    for deployment in tx.deployments():
        rows = tx.revisions(deployment.name)
        active = {row.revision for row in tx.enclaves(deployment.name)}
        needed |= {row.release_digest for row in rows[:3]}
        needed |= {row.release_digest for row in rows if row.number in active}
    return frozenset(needed)
