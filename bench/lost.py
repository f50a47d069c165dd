"""What a run of updates under load offered and what it lost, as figures and notes."""

from __future__ import annotations

from bench.figures import Bound, Figure
from bench.load import Spec
from bench.under_load import SATURATE_S, STREAMS, Seen

LEAST_PLAIN_PER_S = 75.0


def offered(seen: Seen) -> list[Figure]:
    """What was sent in fact, not what was meant to be."""
    counts, direct = seen.counts, seen.direct
    return [
        Figure(
            "new connections/s answered on the plain port",
            counts.plain / counts.elapsed_s,
            "/s",
            baseline=direct.plain_per_s,
            baseline_is="asked directly",
            bound=Bound(LEAST_PLAIN_PER_S, at_least=True),
        ),
        Figure(
            "new connections/s answered over TLS",
            counts.tls / counts.elapsed_s,
            "/s",
            baseline=direct.tls_per_s,
            baseline_is="asked directly",
        ),
    ]


def losses(seen: Seen) -> list[Figure]:
    """Requests and streams: none may be lost, and none may reach the wrong side."""
    counts, none = seen.counts, Bound(0)
    return [
        Figure("requests sent", counts.begun, ""),
        Figure("requests failed", counts.failed, "", bound=none, loss=True),
        Figure("requests reset", counts.reset, "", bound=none, loss=True),
        Figure(f"streams of {seen.stream_s:g} s ended in order", counts.streams_ended, ""),
        Figure("streams failed", counts.streams_failed, "", bound=none, loss=True),
        Figure("streams reset", counts.streams_reset, "", bound=none, loss=True),
        Figure("updates after which the old one was still asked", seen.wrong_side, "", bound=none),
    ]


def notes(seen: Seen) -> list[str]:
    """How good the generator was, and what else was seen."""
    counts, direct = seen.counts, seen.direct.counts
    cpu = counts.cpu_s / counts.elapsed_s if counts.elapsed_s else 0
    told = [
        f"load generator: {cpu * 100:.0f} % of a core; started late by more than 50 ms: "
        f"{counts.late} of {counts.begun}, worst {counts.worst_late_s * 1000:.0f} ms (counted in "
        "the latencies)",
        f"asked directly means {Spec(address='', plain_port=0, https_port=0).at_once} connections "
        f"under way at any time for {SATURATE_S:.0f} s, beside {STREAMS} streams: "
        f"{direct.failed} failed, {direct.reset} reset",
        f"connections that the agent reset at the end of a drain: {seen.reset_by_agent}",
    ]
    if counts.why:
        told.append("lost: " + ", ".join(f"{n} × {why}" for why, n in counts.why.items()))
    if seen.flushed:
        told.append("the map was flushed by hand in the middle: this table must be red")
    told += [f"traffic proxy: RSS {mib:.0f} MiB" for mib in seen.proxies_mib]
    return told
