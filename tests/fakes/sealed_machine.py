"""A host with one deployment that has a secret, below the engine's ports, that may be rebooted."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.model.ids import DeploymentName
from agent.model.release import Release
from agent.model.resources import Listen
from agent.model.revision import DeploymentStatus
from agent.model.update import Update
from agent.updates.orders import Change, NewDeployment
from agent.updates.secrets.at_rest import AtRest
from agent.updates.snapshot.snapshot import DeploymentFacts
from simulator.instant_host import CALLER, InstantHost, InstantReleases
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore

NAME = DeploymentName("web")
LISTEN = Listen(address="127.0.0.1", port=8443)
WAITING, RUNNING = DeploymentStatus.WAITING_FOR_SECRETS, DeploymentStatus.RUNNING


class Sealed(InstantReleases):
    """Every release needs KEY."""

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        release = await super().resolve(repo, tag, digest)
        return msgspec.structs.replace(release, secret_names=("KEY",))


class SealedMachine:
    """With `web` at v1, given KEY=one, once it is deployed."""

    def __init__(
        self,
        directory: Path,
        at_rest: Callable[[], AtRest] | None = None,
        releases: InstantReleases | None = None,
    ) -> None:
        self.directory = directory
        self.releases = releases or Sealed()
        self.at_rest = at_rest
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock.now)
        self.host = self._host()
        self.boots = 1

    def _host(self) -> InstantHost:
        at_rest = self.at_rest() if self.at_rest else None
        return InstantHost(self.store, self.clock, self.directory, self.releases, at_rest=at_rest)

    async def deploy(self, **secrets: str) -> None:
        await self.host.runtime.start()
        given = secrets or {"KEY": "one"}
        request = NewDeployment(name=NAME, repo="hello", tag="v1", listen=LISTEN, secrets=given)
        await self.host.finish(await self.host.engine.deploy(request, CALLER))

    async def reboot(self) -> None:
        """Nothing of memory is left: no agent, no VM, no value."""
        await self.host.runtime.close()
        shutil.rmtree(self.directory / "secrets", ignore_errors=True)
        self.boots += 1
        self.clock.reboot(f"boot-{self.boots}")
        await self.begin()

    async def restart(self) -> None:
        """Of the agent alone; the values in memory stay, VMs begin anew."""
        await self.host.runtime.close()
        await self.begin()

    async def begin(self) -> None:
        self.host = self._host()
        await self.host.runtime.start()

    async def update(self, **change: object) -> Update:
        """A change, to its end."""
        wanted = Change(**change)  # type: ignore[arg-type]
        return await self.host.finish(await self.host.engine.update(NAME, wanted, CALLER))

    @property
    def facts(self) -> DeploymentFacts:
        return self.host.engine.snapshot.deployments[NAME]

    @property
    def given(self) -> dict[str, int]:
        assert self.facts.revision is not None
        return dict(self.facts.revision.secrets)

    async def put(self, **values: str | None) -> tuple[str, ...]:
        return await self.host.engine.set_secrets(NAME, values, CALLER)

    async def until(self, status: DeploymentStatus) -> None:
        async with asyncio.timeout(20):
            while self.facts.status is not status:
                await self.tick()

    async def tick(self) -> None:
        self.clock.advance(1)
        self.host.runtime.wakeups.notify()
        await asyncio.sleep(0.001)

    async def stays(self, status: DeploymentStatus) -> None:
        for _ in range(100):
            await self.tick()
            assert self.facts.status is status

    def problems(self) -> dict[str, str]:
        return {one.code: one.detail for one in self.host.engine.snapshot.problems}

    async def events(self, kind: str) -> list[str]:
        rows = await self.host.engine.events(0)
        return [f"{row.from_} {row.to}: {row.reason}" for row in rows if row.kind == kind]
