"""Switch: how fast traffic moves to the next version under load, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

from bench.figures import Bound, Figure, Table, median, percentile
from bench.lost import losses, notes, offered
from bench.options import Options
from bench.place import Place
from bench.show import Show
from bench.under_load import BACKENDS, Seen, update_under_load, usable

UPDATES = 20
_PROVING = 3


def backends(options: Options) -> tuple[str, ...]:
    """Those asked for; otherwise all that this user may have."""
    if options.prove_red:
        return ("nftables",)
    return options.backends or usable(BACKENDS)


async def measure(place: Place, options: Options, show: Show, backend: str) -> Table:
    """One backend."""
    updates = options.updates or (_PROVING if options.prove_red else UPDATES)
    seen = await update_under_load(place, options, show, backend, updates)
    counts, direct = seen.counts, seen.direct.counts
    table = Table(f"switch, {backend}: {len(seen.switches_s)} updates in a row under load")
    table.figures = [
        *offered(seen),
        *losses(seen),
        _switch_figure(seen),
        *_latencies("plain", counts.latencies_s, direct.latencies_s),
        *_latencies("TLS", counts.tls_latencies_s, direct.tls_latencies_s),
        Figure("POST to QEMU's exec under this load", median(seen.execs_s) * 1000, "ms"),
    ]
    table.notes = notes(seen)
    return table


def _switch_figure(seen: Seen) -> Figure:
    return Figure(
        "decision to data plane",
        median(seen.switches_s) * 1000,
        "ms",
        baseline=median(seen.bare_s) * 1000 if seen.bare_s else None,
        baseline_is="bare nft transaction" if seen.bare_s else "no nft without root",
        bound=Bound(1.5, of="ratio") if seen.bare_s else None,
        note=f"worst {max(seen.switches_s) * 1000:.0f} ms",
    )


def _latencies(what: str, through: list[float], direct: list[float]) -> list[Figure]:
    picks: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
        ("median", median),
        ("p99", lambda values: percentile(values, 99)),
    )
    return [
        Figure(
            f"{what} request answered, {name}",
            pick(through) * 1000,
            "ms",
            baseline=pick(direct) * 1000,
            baseline_is="saturated",
        )
        for name, pick in picks
    ]
