"""The directory with the releases goes away between an update's manifest and its artifacts."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.config import ReleasesConfig
from agent.model.ids import DeploymentName
from agent.model.release import LocalImage, Release
from agent.model.update import Step, UpdateStatus
from agent.releases.store import ReleaseStore, open_releases
from agent.updates.orders import Change
from simulator.instant_host import CALLER, InstantHost
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from tests.fakes.fake_vms import releases_of_own_images

NAME = DeploymentName("hello")


class Gate:
    """Real releases behind a gate: the artifacts are asked for only when it is open."""

    def __init__(self, inner: ReleaseStore) -> None:
        self._inner = inner
        self.open = asyncio.Event()
        self.asked = asyncio.Event()

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        return await self._inner.resolve(repo, tag, digest)

    async def require_signed(self, repo: str, tag: str, digest: str) -> None:
        await self._inner.require_signed(repo, tag, digest)

    async def fetch(self, release: Release) -> LocalImage:
        self.asked.set()
        await self.open.wait()
        return await self._inner.fetch(release)

    def local(self, release: Release) -> LocalImage | None:
        return self._inner.local(release)

    def protect(self, digests: frozenset[str]) -> None:
        self._inner.protect(digests)


async def test_the_update_fails_naming_it_and_is_done_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    source = releases_of_own_images(tmp_path, ("v1", "v2"))
    inner = open_releases(ReleasesConfig(source=str(source)), state_dir=tmp_path / "state")
    releases = Gate(inner)
    clock = ManualClock()
    host = InstantHost(MemoryStore(clock.now), clock, tmp_path, releases)
    await host.runtime.start()
    try:
        releases.open.set()
        assert (await host.deploy(NAME, "v1")).status is UpdateStatus.COMPLETED
        served = host.traffic.orders[NAME]

        releases.open.clear()
        releases.asked.clear()
        began = await host.engine.update(NAME, Change(tag="v2"), CALLER)
        await releases.asked.wait()
        source.rename(tmp_path / "away")
        releases.open.set()
        failed = await host.finish(began)
        assert failed.status is UpdateStatus.FAILED
        assert failed.fault is not None
        assert failed.fault.code == "release_source_unavailable"
        assert str(source) in failed.fault.detail
        assert failed.step is Step.PREPARE
        assert host.traffic.orders[NAME] == served
        assert len(host.vms.running) == 1

        (tmp_path / "away").rename(source)
        again = await host.finish(await host.engine.retry(NAME, CALLER))
        assert again.status is UpdateStatus.COMPLETED, again.fault
        assert host.traffic.orders[NAME] != served
    finally:
        await host.runtime.close()
        await inner.close()
