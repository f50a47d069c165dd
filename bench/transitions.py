"""Durable transitions: the store against bare SQLite that writes the same rows as durably."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.host.clock import RealClock
from agent.model.event import Event
from agent.model.update import Step
from agent.store.port import Transaction
from agent.store.rows import encode
from agent.store.sqlite import SqliteStore
from agent.updates.engine.persist import persist
from agent.updates.planner.types import Situation, Write
from bench.daemon import BenchError
from bench.figures import Bound, Figure, Table, median
from bench.options import Options
from bench.place import Place
from bench.rehearsal import rehearse
from bench.show import Show

LEAST_RATIO = 0.5
_TURNS_A_ROUND = 6
_BATCH = 25

Batch = Callable[[int], Awaitable[None]]


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Short batches by turns, on the disk that the agent's state is on."""
    directory = place.state / "transitions"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        ours, bare = await _by_turns(directory, options.rounds * _TURNS_A_ROUND)
    finally:
        shutil.rmtree(directory)
    show.line(f"{len(ours) * _BATCH} transitions each, in batches of {_BATCH} by turns")
    table = Table("updates: durable transitions")
    table.figures = [
        Figure(
            "transitions/s through the store",
            median(ours),
            "/s",
            baseline=median(bare),
            baseline_is="bare SQLite",
            paired_ratio=median([a / b for a, b in zip(ours, bare, strict=True)]),
            bound=Bound(LEAST_RATIO, of="ratio", at_least=True),
        ),
    ]
    table.notes = [
        "a transition: the update's row, the enclave's row and their two events, in one commit; "
        "WAL and synchronous=FULL on both sides, the same schema and the same bytes",
        "bare SQLite writes what was encoded before, in the caller's thread; the store encodes, "
        "chains the events, and writes in a thread of its own",
        f"{len(ours)} batches of {_BATCH} each by turns; the ratio is the median of the pairs'",
    ]
    return table


async def _by_turns(directory: Path, turns: int) -> tuple[list[float], list[float]]:
    """Transitions/s of each batch: the store's, and the bare ones beside them."""
    situation, write = await _transition()
    name, now = situation.deployment.name, RealClock().now
    ours: list[float] = []
    bare: list[float] = []
    store = await SqliteStore.open(directory / "store.db", now)
    try:
        await store.transact(lambda tx: tx.put_deployment(situation.deployment))

        def work(tx: Transaction) -> list[Event]:
            persist(tx, name, write, lambda _: "", now())
            return tx.events(0, limit=len(write.events))

        events = await store.transact(work)
        await (await SqliteStore.open(directory / "bare.db", now)).close()
        beside = _Bare(directory / "bare.db", write, events)

        async def through_store(count: int) -> None:
            for _ in range(count):
                await store.transact(lambda tx: persist(tx, name, write, lambda _: "", now()))

        pair = [(through_store, ours), (beside.write, bare)]
        for turn in range(turns):
            for batch, took in pair if turn % 2 else reversed(pair):
                took.append(await _per_s(batch))
        beside.close()
    finally:
        await store.close()
    return ours, bare


async def _per_s(batch: Batch) -> float:
    began = time.perf_counter()
    await batch(_BATCH)
    return _BATCH / (time.perf_counter() - began)


async def _transition() -> tuple[Situation, Write]:
    """What is written when the VM of an update runs: the commonest kind."""
    for situation, answer in await rehearse():
        write = answer.write
        if write and write.update and write.update.step is Step.BOOT:
            return situation, write
    raise BenchError("no update of the rehearsal came to boot")


class _Bare:
    """One connection that nothing else uses, in a file that the store laid out."""

    def __init__(self, path: Path, write: Write, events: list[Event]) -> None:
        assert write.update is not None
        (enclave,) = write.put_enclaves
        self._update = (write.update.id, write.update.deployment, 1, encode(write.update))
        self._enclave = (enclave.id, enclave.deployment, encode(enclave))
        self._events = [(encode(event),) for event in events]
        self._connection = sqlite3.connect(path, isolation_level=None)
        (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise BenchError(f"{path} cannot use a write-ahead log here")
        self._connection.execute("PRAGMA synchronous = FULL")

    async def write(self, count: int) -> None:
        do = self._connection.execute
        for _ in range(count):
            do("BEGIN IMMEDIATE")
            do(
                "INSERT INTO enclaves (id, deployment, body) VALUES (?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                self._enclave,
            )
            do(
                "INSERT INTO updates (id, deployment, running, body) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                self._update,
            )
            for event in self._events:
                do("INSERT INTO events (body) VALUES (?)", event)
            do("COMMIT")

    def close(self) -> None:
        self._connection.close()
