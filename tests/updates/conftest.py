"""Hosts on which everything is done at once, above them the real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from simulator.instant_host import InstantHost, Make
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """A host that is started, of the size that is asked for; closed at the end."""
    made: list[InstantHost] = []

    async def one(**size: Any) -> InstantHost:
        clock = ManualClock()
        store = MemoryStore(clock.now)
        directory = tmp_path / str(len(made))
        directory.mkdir()
        host = InstantHost(store, clock, directory, **size)
        made.append(host)
        await host.runtime.start()
        return host

    yield one
    for host in made:
        await host.runtime.close()
