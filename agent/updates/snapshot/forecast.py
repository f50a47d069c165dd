"""The forecast: what the next update of each deployment would be, and how far each rollback is.

Recomputed when rows change and now and then, since memory on the host comes and goes; readers see
the newest one. Each `next_update` is true for that deployment alone: only a lease reserves. A
rollback is judged by the rule that would admit it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.capacity.ledger import free, leased, total
from agent.capacity.supply import HostSupply
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy, Decision
from agent.model.resources import Amounts
from agent.model.revision import Revision
from agent.releases.port import ReleaseError, Releases, ReleaseSourceError
from agent.store.port import Reader, Store
from agent.updates.admission.admit import Ledger, Missing, existing, question, secrets_gone
from agent.updates.admission.lookup import rollback_targets, version_before
from agent.updates.admission.rows import Options
from agent.updates.admission.warm_rollback import warm_enclave
from agent.updates.errors import ConflictError, RefusedError
from agent.updates.secrets.values import SecretValues
from agent.updates.snapshot.snapshot import Feasibility, RollbackOption

UNKNOWN = Decision(strategy=DecidedStrategy.REFUSE)
NOTHING = Amounts()
_UNSIGNED_S = 60.0

_Unsigned = dict[tuple[str, str, str], tuple[str, Instant]]  # why, and since when it is known


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the next step could be, host-wide and for each deployment."""

    free: Amounts = NOTHING
    total: Amounts = NOTHING
    leased: Amounts = NOTHING
    next_update: dict[DeploymentName, Decision] = field(default_factory=dict)
    rollback: dict[DeploymentName, tuple[RollbackOption, ...]] = field(default_factory=dict)


class _Target(NamedTuple):
    """A revision to go back to; its enclave, if it is kept warm; what refuses it otherwise.

    `default`: it is where a rollback goes that names none.
    """

    revision: Revision
    warm: Enclave | None
    refusal: str | None
    default: bool


class Forecaster:
    """Makes forecasts."""

    def __init__(
        self,
        store: Store,
        releases: Releases,
        secret_values: SecretValues,
        *,
        supply: Callable[[], Awaitable[HostSupply]],
        is_well: Callable[[Enclave], bool],
        now: Callable[[], Instant],
    ) -> None:
        self._store = store
        self._releases = releases
        self._secret_values = secret_values
        self._supply = supply
        self._is_well = is_well
        self._now = now
        self._unsigned: _Unsigned = {}

    async def make(self) -> Forecast:
        """Make the forecast of this moment."""
        supply, now = await self._supply(), self._now()
        missing = self._secret_values.missing
        forecast, past = await self._store.read(lambda tx: _decide(tx, supply, missing, now))
        unsigned, self._unsigned = self._unsigned, {}
        for name, targets in past.items():
            options = [await self._option(target, unsigned, now) for target in targets]
            forecast.rollback[name] = tuple(options)
        return forecast

    async def _option(self, target: _Target, unsigned: _Unsigned, now: Instant) -> RollbackOption:
        feasibility, reason = await self._feasibility(target, unsigned, now)
        revision = target.revision
        return RollbackOption(
            revision=revision.number,
            tag=revision.tag,
            feasibility=feasibility,
            reason=reason,
            default=target.default,
        )

    async def _feasibility(
        self, target: _Target, unsigned: _Unsigned, now: Instant
    ) -> tuple[Feasibility, str | None]:
        """What a request for it would be answered, in the order in which it would be asked."""
        revision = target.revision
        fault = await self._signature_fault(revision, unsigned, now)
        if fault is not None:
            return Feasibility.IMPOSSIBLE, fault
        if target.warm is not None and self._is_well(target.warm):
            return Feasibility.WARM, None
        if target.refusal is not None:
            return Feasibility.IMPOSSIBLE, target.refusal
        try:
            release = await self._releases.resolve(
                revision.repo, revision.tag, revision.release_digest
            )
        except (ReleaseError, ReleaseSourceError) as error:
            return Feasibility.IMPOSSIBLE, str(error)
        if self._releases.local(release) is None:
            return Feasibility.FETCH, "its artifacts must be fetched"
        return Feasibility.COLD, None

    async def _signature_fault(
        self, revision: Revision, unsigned: _Unsigned, now: Instant
    ) -> str | None:
        """What stands against it by its signature; the source is not asked at every look."""
        key = (revision.repo, revision.tag, revision.release_digest)
        known = unsigned.get(key)
        age_s = now.since(known[1]) if known else None
        if known is not None and age_s is not None and age_s < _UNSIGNED_S:
            self._unsigned[key] = known
            return known[0]
        try:
            await self._releases.require_signed(*key)
        except (ReleaseError, ReleaseSourceError) as error:
            self._unsigned[key] = (str(error), now)
            return str(error)
        return None


def _decide(
    tx: Reader, supply: HostSupply, missing: Missing, now: Instant
) -> tuple[Forecast, dict[DeploymentName, list[_Target]]]:
    ledger = Ledger.read(tx, supply, now)
    forecast = Forecast(
        free=free(ledger.supply, ledger.holdings, ledger.leases, now),
        total=total(ledger.supply),
        leased=leased(ledger.leases, now),
    )
    past: dict[DeploymentName, list[_Target]] = {}
    for deployment in tx.deployments():
        name = deployment.name
        number = deployment.active_revision or deployment.last_revision
        revision = tx.revision(name, number)
        if revision is not None:
            asked = question(tx, name, revision, Options())
            forecast.next_update[name] = ledger.judge(tx, asked).decision
        before = version_before(tx, deployment)
        past[name] = [
            _Target(
                revision,
                warm_enclave(tx, deployment, revision.number),
                _refusal(tx, ledger, revision, missing(name, revision.awaited_secrets)),
                before is not None and revision.number == before.number,
            )
            for revision in rollback_targets(tx, deployment)
        ]
    return forecast, past


def _refusal(
    tx: Reader, ledger: Ledger, revision: Revision, missing: tuple[str, ...]
) -> str | None:
    """Why an update to it would not be admitted now; None: it would."""
    obstacles = (secrets_gone(missing),) if missing else ()
    try:
        existing(tx, revision.deployment)
    except ConflictError as error:
        return str(error)
    asked = question(tx, revision.deployment, revision, Options(obstacles=obstacles))
    decision = ledger.judge(tx, asked).decision
    return str(RefusedError(decision)) if decision.refused else None


def needed_digests(tx: Reader) -> frozenset[str]:
    """Releases whose artifacts must stay: of every enclave, and of the newest revisions."""
    needed = set()
    for deployment in tx.deployments():
        rows = tx.revisions(deployment.name)
        active = {row.revision for row in tx.enclaves(deployment.name)}
        needed |= {row.release_digest for row in rows[:3]}
        needed |= {row.release_digest for row in rows if row.number in active}
    return frozenset(needed)
