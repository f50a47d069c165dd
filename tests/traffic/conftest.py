"""The worlds as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.traffic.port import Traffic
from tests.traffic.worlds import NEED_ROOT, WORLDS, NftablesWorld, World, nftables_world


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.root] if name in NEED_ROOT else [])
        for name in WORLDS
    ]
)
def world(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[World]:
    with WORLDS[request.param](short_dir) as made:
        yield made


@pytest.fixture
async def traffic(world: World) -> AsyncIterator[Traffic]:
    """A started backend."""
    made = world.traffic()
    await made.start()
    yield made
    await made.close()
    await world.clean()


@pytest.fixture
def host(short_dir: Path) -> Iterator[NftablesWorld]:
    """The world of nftables, for what it alone promises."""
    with nftables_world(short_dir) as made:
        yield made
