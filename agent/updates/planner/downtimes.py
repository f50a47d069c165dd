"""How long nobody will be served in a stop_then_start, from what this host measured.

A downtime is the stop of the old version and all that comes after. They are measured apart,
because the stop depends on the image that is stopped: one that hears its power button takes its
time, one that does not is ended at once, and which of both it is may have been learned only by the
last stop. Totals that were measured before that are taken as they are, less a grace that is not
waited for any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.capacity.estimate import NO_DOWNTIME, estimate
from agent.model.lease import Sample
from agent.model.reasons import DowntimeEstimate
from agent.model.update import Update

TOTAL, REST, STOP = "downtime", "downtime_after_stop", "stop"
_USUAL_STOP_S = 5.0  # of a guest that hears, while nothing was measured


@dataclass(frozen=True, slots=True)
class Downtimes:
    """What was measured, in seconds, newest first, of one deployment and the image that it runs.

    `rests`: without the stop; `totals`: with it, where `rests` has nothing; `asked`, `ended`: the
    stops of this image with its power button, and without.
    """

    rests: tuple[float, ...] = ()
    totals: tuple[float, ...] = ()
    asked: tuple[float, ...] = ()
    ended: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Promise:
    """`history`: without the stop, or with it; `stop` is to be added."""

    history: Sequence[float]
    stop: DowntimeEstimate

    @property
    def total(self) -> DowntimeEstimate | None:
        """Of all of it; None without a history."""
        rest = estimate(self.history)
        return rest + self.stop if rest else None


def promised(found: Downtimes, grace_s: float, *, deaf: bool) -> Promise:
    """What is to be expected of the next one, if its guest is asked first, or is `deaf`."""
    if found.totals and not found.rests:
        spared_s = grace_s if deaf else 0.0
        history = [one - spared_s if one >= spared_s else one for one in found.totals]
        return Promise(history, NO_DOWNTIME)
    stops = found.ended if deaf else found.asked
    return Promise(found.rests, estimate(stops) or _unmeasured(grace_s, deaf=deaf))


def measured(update: Update, image: str | None) -> tuple[Sample, ...]:
    """What an update that is complete taught. `image`: the version of what it stopped."""
    total, stop = update.downtime_s, update.stop_s
    if total is None:
        return ()
    samples = [Sample(kind=TOTAL, key=key, value_s=total) for key in (update.deployment, "")]
    if stop is not None:
        rest = max(0.0, total - stop)
        samples += [Sample(kind=REST, key=key, value_s=rest) for key in (update.deployment, "")]
        key = key_of(image, deaf=update.stopped_unasked)
        samples.append(Sample(kind=STOP, key=key, value_s=stop))
    return tuple(samples)


def _unmeasured(grace_s: float, *, deaf: bool) -> DowntimeEstimate:
    if deaf:
        return NO_DOWNTIME
    return DowntimeEstimate(p50=min(_USUAL_STOP_S, grace_s), p90=grace_s, samples=0)


def key_of(image: str | None, *, deaf: bool) -> str:
    return f"{image} {'ended' if deaf else 'asked'}"
