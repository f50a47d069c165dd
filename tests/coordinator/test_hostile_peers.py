"""Everybody who should not get in, at once, against the real daemon; and one who should."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import aiohttp
import pytest

from tests.coordinator.hostile import HALF_OPEN, Figure, Hostile
from tests.coordinator.world import Coordinator, rss_kib, world
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import settings
from tests.fakes.fleet import HOST, Pki

pytestmark = pytest.mark.slow
_GROWN_MIB = 32
_SLOWEST_S = 5.0


class Honest:
    """A coordinator that goes on meanwhile: on a connection that it keeps, and on new ones."""

    def __init__(self, daemon: Daemon, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._url = f"https://{daemon.config['listen']['rpc']}"
        self._daemon = daemon
        self.kept_s: list[float] = []
        self.new_s: list[float] = []
        self.rss_mib: list[float] = []

    async def run(self) -> None:
        async with self._coordinator.calling(self._url, keep=True) as session:
            while True:
                self.kept_s.append(await self._ask(session))
                async with self._coordinator.calling(self._url) as newly:
                    self.new_s.append(await self._ask(newly))
                self.rss_mib.append(rss_kib(self._daemon.pid) / 1024)
                await asyncio.sleep(0.05)

    async def _ask(self, session: aiohttp.ClientSession) -> float:
        began = time.monotonic()
        async with session.get("/status") as answer:
            assert answer.status == 200
            await answer.read()
        return time.monotonic() - began


async def test_who_is_hostile_is_refused_and_an_honest_peer_is_served_meanwhile(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        port = int(str(daemon.config["listen"]["rpc"]).rpartition(":")[2])  # type: ignore[index]
        hostile = Hostile(port, Pki(coordinator.home / "pki"), Pki(tmp_path / "foreign"))
        await hostile.revoke_one()
        honest = Honest(daemon, coordinator)
        going_on = asyncio.create_task(honest.run())
        await asyncio.sleep(0.5)
        before = honest.rss_mib[-1]
        figures: list[Figure] = []
        try:
            for some in await asyncio.gather(
                hostile.nobodies(),
                hostile.lorises(),
                hostile.half_open(),
                _in_turn(hostile),
            ):
                figures += some
        finally:
            going_on.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await going_on
        print(*figures, sep="\n")
        grown = [one - before for one in honest.rss_mib]
        print(
            f"memory {max(grown):+.1f} MiB at most, {grown[-1]:+.1f} at the end; an honest peer "
            f"was served {len(honest.kept_s)} times in {max(honest.kept_s):.3f} s at most, and "
            f"let in {len(honest.new_s)} times in {max(honest.new_s):.3f} s at most"
        )
        for figure in figures:
            assert figure.refused == figure.tried, figure
        assert sum(figure.tried for figure in figures) > HALF_OPEN
        assert max(grown) < _GROWN_MIB
        assert grown[-1] - grown[len(grown) // 2] < _GROWN_MIB / 4  # it does not go on growing
        assert max(honest.kept_s) < _SLOWEST_S
        assert max(honest.new_s) < _SLOWEST_S
        assert (await daemon.get("/v1/deployments")).body["deployments"] == []
        status = (await daemon.get("/status")).body
        assert status["host"]["draining"] is False
        assert coordinator.ledger.reports(HOST) > 0


async def _in_turn(hostile: Hostile) -> list[Figure]:
    """Those that have a role, and want more."""
    figures: list[Figure] = []
    for kind in (
        hostile.observers_that_write,
        hostile.smugglers,
        hostile.wanderers,
        hostile.replayers,
        hostile.bodies,
    ):
        figures += await kind()
    return figures
