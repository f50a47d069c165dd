"""A long life in little time: the real engine and the real store, on a host of values."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from agent.model.ids import DeploymentName
from agent.model.update import UpdateStatus
from agent.store.chain import verify_chain
from agent.store.retention import EVENTS_KEPT, REVISIONS_KEPT, UPDATES_KEPT
from agent.store.sqlite import SqliteStore
from simulator.instant_host import InstantHost
from simulator.manual_clock import ManualClock

NAME = DeploymentName("hello")
UPDATES = 1000
SETTLED = 300  # from here on nothing may grow: every kept number is reached but the events'
GROWTH_MIB = 4
MORE_OBJECTS = 1000
STORE_MIB = 16


def rss_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.slow
@pytest.mark.timeout(900)  # it computes without a pause, and others may compute beside it
async def test_a_thousand_updates_leave_memory_and_store_bounded(short_dir: Path) -> None:
    clock = ManualClock()
    file = short_dir / "agent.db"
    store = await SqliteStore.open(file, clock.now)
    host = InstantHost(store, clock, short_dir)
    await host.runtime.start()
    try:
        assert (await host.deploy(NAME, "v0")).status is UpdateStatus.COMPLETED
        objects, settled_rss, mib = 0, 0, 0.0
        for number in range(1, UPDATES + 1):
            done = await host.update(NAME, f"v{number % 7}")
            assert done.status is UpdateStatus.COMPLETED, (number, done.fault)
            assert len(host.vms.running) == len(host.probes.watched) == 1
            if number == SETTLED:
                gc.collect()
                objects, settled_rss = len(gc.get_objects()), rss_kib()
                mib = file.stat().st_size / 2**20
        gc.collect()
        more_objects = len(gc.get_objects()) - objects
        rss_growth = rss_kib() - settled_rss
        events, checkpoint, bounds, updates, revisions, claims = await store.read(
            lambda tx: (
                tx.events(0, UPDATES * 100),
                tx.checkpoint(),
                tx.event_bounds(),
                len(tx.updates(NAME, limit=UPDATES)),
                len(tx.revisions(NAME)),
                len(tx.claims()),
            )
        )
    finally:
        await host.runtime.close()
        await store.close()
    size_mib = file.stat().st_size / 2**20
    print(
        f"{UPDATES} updates: RSS {rss_growth / 1024:+.1f} MiB and {more_objects:+} objects in the "
        f"last {UPDATES - SETTLED}, store {size_mib:.1f} MiB ({mib:.1f} at {SETTLED}), "
        f"{bounds[1]} events, {len(events)} kept"
    )
    assert rss_growth < GROWTH_MIB * 1024
    assert more_objects < MORE_OBJECTS
    assert size_mib < STORE_MIB
    assert (updates, revisions) == (UPDATES_KEPT, REVISIONS_KEPT)
    assert claims == 2
    assert bounds[1] > EVENTS_KEPT == len(events)
    assert verify_chain(events, checkpoint, bounds[1]) is None
