"""What this host measured of downtimes, read for a decision and for who is shown it."""

from __future__ import annotations

from agent.model.ids import DeploymentName
from agent.store.port import Reader
from agent.updates.planner.downtimes import REST, STOP, TOTAL, Downtimes, key_of


def read_downtimes(tx: Reader, name: DeploymentName | None, image: str | None) -> Downtimes:
    """Of this deployment, or of any while it has none of its own."""
    stops = {deaf: tuple(tx.samples(STOP, key_of(image, deaf=deaf))) for deaf in (False, True)}
    rests: list[float] = []
    totals: list[float] = []
    for key in (name, "") if name else ("",):
        rests = rests or tx.samples(REST, key)
        totals = totals or tx.samples(TOTAL, key)
        if rests or totals:
            break
    return Downtimes(tuple(rests), tuple(totals), asked=stops[False], ended=stops[True])
