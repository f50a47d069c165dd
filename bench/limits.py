"""What a busy host has much of, beside the same with little: what it costs must not grow with it.

A connection table full of others' entries, many open connections, a long history, many enclaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.host.clock import RealClock
from agent.model.event import EventDraft
from agent.store.retention import EVENTS_KEPT
from agent.store.sqlite import SqliteStore
from agent.updates.snapshot.rows import read_rows
from bench.daemon import BenchError
from bench.figures import Bound, Figure, Table, median
from bench.limits_enclaves import FEW as FEW_ENCLAVES
from bench.limits_enclaves import MANY as MANY_ENCLAVES
from bench.limits_enclaves import measure_enclaves
from bench.limits_kernel import FEW, LOTS, MANY, SOME
from bench.options import Options
from bench.place import ROOT, Place
from bench.show import Show
from simulator.rows import deployment, revision

_REVISIONS = (20, 1_000)
_EVENTS = (500, EVENTS_KEPT)
_PAGE = 500
_LOOKS = 200
_FLAT = 1.5


async def measure(place: Place, options: Options, show: Show) -> Table:
    """As root: network namespaces, and a table of connections."""
    if os.geteuid() != 0:
        raise BenchError("limits can only be measured as root: they need namespaces")
    place.make()
    directory = place.state / "limits"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        kernel = await _kernel(directory)
        show.line(f"connections: {kernel}")
        history = await _history(directory)
        show.line(f"history: {history}")
        enclaves = await measure_enclaves(directory, options.seconds, show)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    table = Table("limits: much of it, beside little")
    table.figures = [*_of_kernel(kernel), *_of_history(history), *_of_enclaves(enclaves)]
    table.notes = [
        f"entries are others' flows, made by netlink; {kernel[f'found {MANY}']:.0f} connections "
        "to the endpoint are open meanwhile; a listing of all of them took "
        f"{kernel[f'whole ms {FEW}']:.0f} and {kernel[f'whole ms {MANY}']:.0f} ms, "
        f"{kernel[f'whole bytes {MANY}'] / 1e6:.0f} MB",
        "the walk through its table is the kernel's, and grows with the table; our own time is "
        "that of this process outside the kernel",
        f"history: on the disk that the agent's state is on; medians of {_LOOKS}",
        "enclaves: the real daemon with VMs that are none, in user mode, each with its probes",
    ]
    return table


async def _kernel(directory: Path) -> dict[str, float]:
    argv = ("unshare", "--net", sys.executable, "-m", "bench.limits_kernel", str(directory))
    process = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    if process.returncode != 0:
        raise BenchError("connections could not be measured: see what was printed above")
    return dict(json.loads(said))


async def _history(directory: Path) -> dict[str, float]:
    """Milliseconds, at each size of the history."""
    found: dict[str, float] = {}
    row = deployment()
    store = await SqliteStore.open(directory / "store.db", RealClock().now)
    try:
        await store.transact(lambda tx: tx.put_deployment(row))
        for number in range(1, _REVISIONS[1] + 1):
            await store.transact(lambda tx, n=number: tx.put_revision(revision(n)))  # type: ignore[misc]
            if number in _REVISIONS:
                found[f"turn {number}"] = await _timed(
                    lambda: store.read(lambda tx: read_rows(tx, row.name))
                )
        draft = EventDraft(kind="enclave", deployment=row.name, from_="a", to="b", reason="bench")
        there = 0
        for number in _EVENTS:
            while there < number:
                batch = min(_PAGE, number - there)
                await store.transact(lambda tx, n=batch: [tx.append(draft) for _ in range(n)])  # type: ignore[misc]
                there += batch
            found[f"append {number}"] = await _timed(
                lambda: store.transact(lambda tx: tx.append(draft))
            )
            there += _LOOKS
            found[f"page {number}"] = await _timed(
                lambda: store.read(
                    lambda tx: tx.events(tx.sequence_before_newest(_PAGE // 2), _PAGE)
                )
            )
    finally:
        await store.close()
    return found


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(_LOOKS):
        began = time.perf_counter()
        await work()
        took.append((time.perf_counter() - began) * 1e3)
    return median(took)


def _flat(
    what: str, many: float, few: float, unit: str, few_is: str, limit: float = _FLAT
) -> Figure:
    bound = Bound(limit, of="ratio")
    return Figure(what, many, unit, baseline=few, baseline_is=few_is, bound=bound)


def _of_kernel(found: dict[str, float]) -> list[Figure]:
    entries, some = f"{FEW:,} entries", f"{SOME:,} open"
    wrong = sum(found[f"{name} {n}"] for n in (SOME, LOTS) for name in ("miscounted", "not reset"))
    per = {
        (name, n): found[f"{name} ms {n}"] / n * 1e3
        for name in ("count", "reset")
        for n in (SOME, LOTS)
    }
    return [
        _flat(
            f"bytes that cross for a count, {MANY:,} entries",
            found[f"bytes {MANY}"],
            found[f"bytes {FEW}"],
            "B",
            entries,
            1.0,
        ),
        Figure(
            f"own time of a count, {MANY:,} entries",
            found[f"user ms {MANY}"],
            "ms",
            baseline=found[f"user ms {FEW}"],
            baseline_is=entries,
            bound=Bound(5.0, of="excess"),
        ),
        Figure(
            f"a count in all, {MANY:,} entries",
            found[f"took ms {MANY}"],
            "ms",
            baseline=found[f"took ms {FEW}"],
            baseline_is=entries,
            bound=Bound(150),
        ),
        _flat(f"count, each of {LOTS:,} open", per["count", LOTS], per["count", SOME], "µs", some),
        _flat(f"reset, each of {LOTS:,} open", per["reset", LOTS], per["reset", SOME], "µs", some),
        Figure("connections miscounted, or not reset", wrong, "", bound=Bound(0), loss=True),
    ]


def _of_history(found: dict[str, float]) -> list[Figure]:
    (few, many), (early, late) = _REVISIONS, _EVENTS
    return [
        _flat(
            f"reading a deployment's rows after {many:,} revisions",
            found[f"turn {many}"],
            found[f"turn {few}"],
            "ms",
            f"{few} revisions",
        ),
        _flat(
            f"recording an event, {late:,} kept",
            found[f"append {late}"],
            found[f"append {early}"],
            "ms",
            f"{early} kept",
        ),
        _flat(
            f"reading the newest {_PAGE // 2} of {late:,} events",
            found[f"page {late}"],
            found[f"page {early}"],
            "ms",
            f"{early} kept",
        ),
    ]


def _of_enclaves(found: dict[str, float]) -> list[Figure]:
    few, many = f"{FEW_ENCLAVES} enclaves", f"{MANY_ENCLAVES} enclaves"
    figures = []
    for name, unit in (("READY", "s"), ("/status", "ms"), ("CPU at rest, each", "% of a core")):
        figures.append(
            Figure(
                f"{name}, {many}",
                found[f"{name} {MANY_ENCLAVES}"],
                unit,
                baseline=found[f"{name} {FEW_ENCLAVES}"],
                baseline_is=few,
                bound=Bound(3.0) if name == "READY" else None,
            )
        )
    return figures
