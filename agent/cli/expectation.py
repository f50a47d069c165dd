"""How far along an update is, beside what this host's own history says of it, in words."""

from __future__ import annotations

import datetime as dt

from agent.cli.text import duration, moment
from agent.wire.views import EstimateView, UpdateView

_BEFORE_BOOT = ("prepare", "launch")
_DOWN = ("accept", "stop_old", "release")


def pace(update: UpdateView, now: dt.datetime) -> str:
    """`2.1 s of about 2.5 s, ready in about 5.4 s`; nothing without a history."""
    progress, step = update.progress, update.step
    words = []
    boot, downtime = progress.boot_estimate_s, progress.downtime_estimate_s
    if step == "boot" and boot and update.started_at:
        passed = duration((now - update.started_at).total_seconds())
        words.append(f"{passed} of about {duration(boot.p50)}")
    elif step in _BEFORE_BOOT and boot:
        words.append(f"boot about {duration(boot.p50)}")
    if downtime and step in _DOWN:
        words.append(f"downtime about {duration(downtime.p50)}")
    if progress.ready_estimate_at is not None:
        left = (progress.ready_estimate_at - now).total_seconds()
        words.append(f"ready in about {duration(left)}" if left > 0 else "later than usual")
    return ", ".join(words)


def history(update: UpdateView) -> str:
    """The same for a page that is read once: what is usual, and when it will be ready."""
    progress = update.progress
    words = [
        f"{what} about {duration(one.p50)}, rarely over {duration(one.p90)} ({_of(one)})"
        for what, one in (
            ("boot", progress.boot_estimate_s),
            ("downtime", progress.downtime_estimate_s),
        )
        if one is not None
    ]
    if progress.ready_estimate_at is not None:
        words.append(f"ready about {moment(progress.ready_estimate_at)}")
    return "; ".join(words)


def _of(estimate: EstimateView) -> str:
    return f"{estimate.samples} sample{'' if estimate.samples == 1 else 's'}"
