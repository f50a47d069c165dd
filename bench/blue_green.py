"""Fifty blue-green updates in a row under load, and not one request or stream may be lost."""

from __future__ import annotations

from bench.figures import Table
from bench.lost import losses, notes, offered
from bench.options import Options
from bench.place import Place
from bench.show import Show
from bench.under_load import update_under_load, usable

UPDATES = 50
STREAM_S = 6.0  # twenty are open at every switch, whatever their length
_BACKENDS = ("nftables", "userspace", "haproxy")


def backends(options: Options) -> tuple[str, ...]:
    """Those asked for; otherwise those of a host with taps, as far as this user may have them."""
    return options.backends or usable(_BACKENDS)


async def measure(place: Place, options: Options, show: Show, backend: str) -> Table:
    """One backend."""
    updates = options.updates or UPDATES
    seen = await update_under_load(place, options, show, backend, updates, stream_s=STREAM_S)
    done = len(seen.switches_s)
    table = Table(f"updates, {backend}: {done} blue-green updates in a row under load")
    table.figures = [*offered(seen), *losses(seen)]
    table.notes = notes(seen)
    return table
