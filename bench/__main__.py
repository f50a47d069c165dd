"""`scripts/bench`, once the environment and the guest image are there."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from bench import (
    attacks,
    attestation,
    blue_green,
    downtime,
    host,
    idle,
    inventory,
    launch,
    limits,
    link,
    machine,
    neighbours,
    plane,
    planner,
    switch,
    transitions,
)
from bench.daemon import BenchError
from bench.figures import Table
from bench.options import Options
from bench.place import Place
from bench.releases import make_releases
from bench.show import Show
from bench.under_load import BACKENDS

Measure = Callable[[Place, Options, Show], Awaitable[Table]]
# Under load: each backend on its own, so that a table is there as soon as it can be.
PER_BACKEND = {"switch": switch, "blue_green": blue_green}
MEASURES: dict[str, Measure] = {
    "launch": launch.measure,
    "idle": idle.measure,
    "plane": plane.measure,
    "neighbours": neighbours.measure,
    "inventory": inventory.measure,
    "attestation": attestation.measure,
    "link": link.measure,
    "planner": planner.measure,
    "transitions": transitions.measure,
    "downtime": downtime.measure,
    "host": host.measure,
    "attacks": attacks.measure,
    "limits": limits.measure,
}
PARTS = {"updates": ("planner", "transitions", "downtime", "blue_green")}
NAMES = (
    "launch",
    "idle",
    "plane",
    "neighbours",
    "inventory",
    "attestation",
    "link",
    "switch",
    "updates",
    "host",
    "limits",
)


async def _run(names: tuple[str, ...], options: Options, place: Place, show: Show) -> bool:
    show.line(machine.describe())
    await make_releases(place)
    for name in names:
        for measure in _measures(name, options):
            await _one(name, measure, options, place, show)
    return show.verdict()


def _measures(name: str, options: Options) -> list[Measure]:
    if name in PARTS:
        return [measure for part in PARTS[name] for measure in _measures(part, options)]
    if suite := PER_BACKEND.get(name):
        return [partial(suite.measure, backend=one) for one in suite.backends(options)]
    return [MEASURES[name]]


async def _one(name: str, measure: Measure, options: Options, place: Place, show: Show) -> None:
    quiet = await machine.wait_quiet(options.patience_s, show.line)
    show.line(f"{name}: {quiet}")
    table = await measure(place, options, show)
    table.notes.append(f"{quiet}; after it {machine.load()}")
    show.table(table)


def _parts() -> str:
    return "; ".join(f"{name} is {' '.join(parts)}" for name, parts in PARTS.items())


def _arguments() -> tuple[tuple[str, ...], Options]:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "measures", nargs="*", metavar="MEASURE", help=f"{' '.join(NAMES)} all; {_parts()}"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=Options.rounds,
        help="repetitions of launch, plane, neighbours, attestation, link, downtime, transitions",
    )
    parser.add_argument(
        "--updates",
        type=int,
        help=f"updates in a row: {switch.UPDATES} of switch, {blue_green.UPDATES} of blue_green",
    )
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS, help="only this one, under load"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=Options.seconds,
        help="length of an idle window, and of each attack",
    )
    parser.add_argument(
        "--attack", action="append", metavar="TEXT", help="only attacks with this in their names"
    )
    parser.add_argument(
        "--patience", type=float, default=Options.patience_s, help="seconds to wait for quiet"
    )
    parser.add_argument(
        "--prove-red",
        action="store_true",
        help="flush the data plane's map in the middle of switch; 0 if that turned it red",
    )
    given = parser.parse_args()
    names = tuple(given.measures) or ("all",)
    if unknown := set(names) - {*NAMES, *MEASURES, *PER_BACKEND, "all"}:
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    if "all" in names:
        names = NAMES
    if given.prove_red:
        names = ("switch",)
    return names, Options(
        rounds=given.rounds,
        updates=given.updates,
        backends=tuple(given.backend or ()),
        prove_red=given.prove_red,
        seconds=given.seconds,
        patience_s=given.patience,
        attacks=tuple(given.attack or ()),
    )


def _stop_on_signals(show: Show) -> None:
    """The first ends the run; the others change nothing: what was made has to be taken back."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def stop() -> None:
        for number in numbers:
            loop.add_signal_handler(number, lambda: None)
        show.line("stopping; taking back what was made")
        task.cancel()

    for number in numbers:
        loop.add_signal_handler(number, stop)


async def _main(names: tuple[str, ...], options: Options) -> int:
    place = Place()
    place.state.mkdir(parents=True, exist_ok=True)
    show = Show(place.results)
    _stop_on_signals(show)
    with (place.state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show.line("another bench runs in this checkout")
            return 2
        try:
            green = await _run(names, options, place, show)
        except BenchError as error:
            if show.tables:
                show.verdict()
            show.line(f"could not measure: {error}")
            return 1
    if options.prove_red:
        lost = [figure for table in show.tables for figure in table.missed if figure.loss]
        show.line("proved: it turned red" if lost else "NOT PROVED: nothing was seen lost")
        return int(not lost)
    return int(not green)


if __name__ == "__main__":
    os.environ.pop("NOTIFY_SOCKET", None)
    chosen = _arguments()
    with contextlib.suppress(asyncio.CancelledError):
        sys.exit(asyncio.run(_main(*chosen)))
    sys.exit(130)
