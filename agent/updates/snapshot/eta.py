"""What is to be expected of an update that runs, by this host's own history. Pure."""

from __future__ import annotations

from agent.capacity.estimate import estimate
from agent.model.clock import Instant
from agent.model.reasons import DowntimeEstimate, Strategy
from agent.model.update import Booting, Decided, Update, Verifying
from agent.updates.planner.downtimes import promised
from agent.updates.planner.types import Situation
from agent.updates.snapshot.rows import Rows
from agent.updates.snapshot.snapshot import Estimate

_NOTHING = Estimate()


def expected(rows: Rows, s: Situation) -> Estimate:
    """Nothing of an update that is ready, or that is being undone."""
    update = rows.update
    if update is None or update.decided is not Decided.UNDECIDED or update.ready_at is not None:
        return _NOTHING
    stops = update.strategy is Strategy.STOP_THEN_START
    return Estimate(
        boot=estimate(rows.boots),
        downtime=_downtime(rows, s, update) if stops else None,
        ready_at=_ready_at(rows, s, dwell_s=0.0 if stops else s.policy.dwell_s),
    )


def _downtime(rows: Rows, s: Situation, update: Update) -> DowntimeEstimate | None:
    """With the grace of the version that is stopped, as far as its image makes use of it."""
    deaf = update.from_revision in s.deaf
    return promised(rows.downtimes, s.policy.stop_grace_s, deaf=deaf).total


def _ready_at(rows: Rows, s: Situation, *, dwell_s: float) -> Instant | None:
    """The boot as it usually is, then the dwell; from when it got healthy, once it is."""
    update, boot = rows.update, estimate(rows.boots)
    if update is None or not isinstance(update.state, Booting | Verifying):
        return None
    health = s.health_of(update.enclave)
    if health is not None and health.healthy and health.healthy_since is not None:
        return health.healthy_since.plus(dwell_s)
    if boot is None or update.started_at is None:
        return None
    return update.started_at.plus(boot.p50 + dwell_s)
