"""How long a deployment will be down, from this host's own history."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.model.reasons import DowntimeEstimate

NO_DOWNTIME = DowntimeEstimate(p50=0.0, p90=0.0, samples=0)
DEFAULT_DOWNTIME = DowntimeEstimate(p50=45.0, p90=120.0, samples=0)


def estimate_downtime(history: Sequence[float]) -> DowntimeEstimate:
    """Of measured downtimes in seconds; a default when there is none."""
    return estimate(history) or DEFAULT_DOWNTIME


def estimate(history: Sequence[float]) -> DowntimeEstimate | None:
    """Nearest-rank percentiles of seconds that were measured; None when there are none."""
    samples = sorted(value for value in history if math.isfinite(value) and value >= 0)
    if not samples:
        return None
    return DowntimeEstimate(
        p50=_percentile(samples, 50), p90=_percentile(samples, 90), samples=len(samples)
    )


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
