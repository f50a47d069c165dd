"""The forecast: what the next update of each deployment would be, and how far each rollback is.

Recomputed when rows change and now and then, since memory on the host comes and goes; readers see
the newest one. Each `next_update` is true for that deployment alone: only a lease reserves. A
rollback is judged by the rule that would admit it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.capacity.ledger import leased, total
from agent.capacity.supply import HostSupply
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy, Decision
from agent.model.resources import Amounts
from agent.model.revision import Deployment, Revision
from agent.model.update import Update
from agent.releases.port import ReleaseError, Releases, ReleaseSourceError
from agent.store.port import Reader, Store
from agent.updates.admission.admit import existing, secrets_gone
from agent.updates.admission.judging import Ledger, Standing
from agent.updates.admission.lookup import read_past, rollback_targets, version_before
from agent.updates.admission.rollbacks import Past
from agent.updates.admission.rows import Options
from agent.updates.admission.warm_rollback import warm_enclave
from agent.updates.errors import ConflictError, RefusedError
from agent.updates.secrets.values import SecretValues
from agent.updates.snapshot.snapshot import Feasibility, RollbackOption

UNKNOWN = Decision(strategy=DecidedStrategy.REFUSE)
NOTHING = Amounts()
_UNSIGNED_S = 60.0
_AT_ONCE_S = 0.004

_Unsigned = dict[tuple[str, str, str], tuple[str, Instant]]  # why, and since when it is known
_Moment = tuple[Update | None, int | None]  # the newest update, and the active revision


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
        self._pasts: dict[DeploymentName, tuple[_Moment, Past]] = {}

    async def make(self) -> Forecast:
        """Make the forecast of this moment."""
        supply, now = await self._supply(), self._now()
        ledger, waiting = await self._store.read(
            lambda tx: (Ledger.read(tx, supply, now), deque(tx.deployments()))
        )
        forecast, targets = _of_the_host(ledger), dict[DeploymentName, list[_Target]]()
        self._pasts = {
            row.name: self._pasts[row.name] for row in waiting if row.name in self._pasts
        }
        while waiting:
            await self._store.read(lambda tx: self._look(tx, ledger, waiting, forecast, targets))
        unsigned, self._unsigned = self._unsigned, {}
        for name, found in targets.items():
            options = [await self._option(target, unsigned, now) for target in found]
            forecast.rollback[name] = tuple(options)
        return forecast

    def _look(
        self,
        tx: Reader,
        ledger: Ledger,
        waiting: deque[Deployment],
        forecast: Forecast,
        targets: dict[DeploymentName, list[_Target]],
    ) -> None:
        """Look at some of those that wait: others want the store's lane, too."""
        began = time.monotonic()
        while waiting and time.monotonic() < began + _AT_ONCE_S:
            deployment = waiting.popleft()
            name, standing = deployment.name, Standing.read(tx, deployment.name)
            revision = tx.revision(name, deployment.active_revision or deployment.last_revision)
            if revision is not None:
                asked = standing.question(revision, Options())
                forecast.next_update[name] = ledger.judge(tx, asked).decision
            targets[name] = self._targets(tx, ledger, deployment, standing)

    def _targets(
        self, tx: Reader, ledger: Ledger, deployment: Deployment, standing: Standing
    ) -> list[_Target]:
        past = self._past(tx, deployment)
        before = version_before(tx, deployment, past)
        closed = _closed(tx, deployment.name)
        return [
            _Target(
                revision,
                warm_enclave(tx, deployment, revision.number),
                closed or self._refusal(tx, ledger, standing, revision),
                before is not None and revision.number == before.number,
            )
            for revision in rollback_targets(tx, deployment, past)
        ]

    def _refusal(
        self, tx: Reader, ledger: Ledger, standing: Standing, revision: Revision
    ) -> str | None:
        """Why an update to it would not be admitted now; None: it would."""
        missing = self._secret_values.missing(standing.name, revision.awaited_secrets)
        obstacles = (secrets_gone(missing),) if missing else ()
        asked = standing.question(revision, Options(obstacles=obstacles))
        decision = ledger.judge(tx, asked).decision
        return str(RefusedError(decision)) if decision.refused else None

    def _past(self, tx: Reader, deployment: Deployment) -> Past:
        """Read anew when there is news of its newest update: those before it change no more."""
        newest = tx.updates(deployment.name, limit=1)
        moment = (newest[0] if newest else None, deployment.active_revision)
        known = self._pasts.get(deployment.name)
        if known is None or known[0] != moment:
            known = self._pasts[deployment.name] = (moment, read_past(tx, deployment))
        return known[1]

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


def _of_the_host(ledger: Ledger) -> Forecast:
    accounts = ledger.accounts
    return Forecast(
        free=accounts.free,
        total=total(accounts.supply),
        leased=leased(accounts.leases, accounts.now),
    )


def _closed(tx: Reader, name: DeploymentName) -> str | None:
    """Why no update at all would be admitted now."""
    try:
        existing(tx, name)
    except ConflictError as error:
        return str(error)
    return None


def needed_digests(tx: Reader) -> frozenset[str]:
    """Releases whose artifacts must stay: of every enclave, and of the newest revisions."""
    needed = set()
    for deployment in tx.deployments():
        rows = tx.revisions(deployment.name)
        active = {row.revision for row in tx.enclaves(deployment.name)}
        needed |= {row.release_digest for row in rows[:3]}
        needed |= {row.release_digest for row in rows if row.number in active}
    return frozenset(needed)
