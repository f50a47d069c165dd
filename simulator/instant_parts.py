"""Releases and a preparer of values, for the host on which everything is done at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from agent.inventory.port import Chain
from agent.inventory.preparation.records import begin, finish, unowned_dirty
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, EnclaveId
from agent.model.release import LocalImage, Release
from agent.releases.port import KeptImage, ReleaseError, ReleaseNotFoundError
from agent.releases.signature import SignatureRequiredError
from agent.store.port import Store, Transaction
from simulator.manual_clock import ManualClock
from simulator.simulated_host import release

IMAGE = LocalImage(
    kernel=Path("/nonexistent"), initrd=Path("/nonexistent"), root_disk=Path("/nonexistent")
)


class InstantReleases:
    """Satisfies `agent.releases.port.Releases`: every tag is there, as `made` says or a plain one.

    `here`: the tags whose artifacts are on this host; of those that are `broken` none can be had.
    What was taken once is known by its digest, whatever becomes of its tag or of the source.
    """

    def __init__(self) -> None:
        self.made: dict[str, Release] = {}
        self.here: set[str] = set()
        self.broken: set[str] = set()
        self.unknown: set[str] = set()
        self.unsigned: set[str] = set()
        self.answers = asyncio.Event()  # whether the source does
        self.answers.set()
        self.asked: list[str] = []  # the tags that the source was asked for
        self._taken: dict[str, Release] = {}

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        if digest in self._taken:
            return self._taken[digest]
        self.asked.append(tag)
        await self.answers.wait()
        if tag in self.unknown:
            raise ReleaseNotFoundError(f"no release {tag} of {repo} at the source")
        if digest is None:
            await self.require_signed(repo, tag, "")
        found = self.made.get(tag) or release(tag)
        self._taken[found.digest] = found
        return found

    async def require_signed(self, repo: str, tag: str, digest: str) -> None:
        if tag in self.unsigned:
            raise SignatureRequiredError(f"{repo} {tag} is not signed")

    async def fetch(self, release: Release) -> LocalImage:
        if release.tag in self.broken:
            raise ReleaseError(f"the artifacts of {release.tag} are not what it says")
        self.here.add(release.tag)
        return IMAGE

    def local(self, release: Release) -> LocalImage | None:
        return IMAGE if release.tag in self.here else None

    def protect(self, digests: frozenset[str]) -> None: ...

    async def images(self) -> Sequence[KeptImage]:
        return ()

    async def prune(self, unused_for_s: float) -> Sequence[KeptImage]:
        return ()


class InstantPreparer:
    """Satisfies `agent.updates.admission.gpus.Preparation`.

    `works`: whether it cleans what is nobody's.
    """

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.works = True
        self._store = store
        self._clock = clock

    async def start(self) -> None: ...

    async def keep(self) -> None:
        while True:
            if self.works and await self._store.read(lambda tx: bool(unowned_dirty(tx))):
                await self.clean()
            await asyncio.sleep(0.02)

    async def clean(self) -> None:
        """All that is dirty and nobody's."""

        def work(tx: Transaction) -> None:
            for one in unowned_dirty(tx):
                finish(tx, [one], {one: CcMode.ON}, self._clock.now())

        await self._store.transact(work)

    def look_again(self) -> None: ...

    async def examine(self, devices: Sequence[Bdf]) -> None: ...

    async def make_ready(
        self, enclave: EnclaveId, devices: Sequence[Bdf], mode: CcMode | None
    ) -> None:
        def work(tx: Transaction) -> None:
            begin(tx, devices, enclave, self._clock.now())
            finish(tx, devices, dict.fromkeys(devices, mode), self._clock.now())

        await self._store.transact(work)

    async def recover(self, bdf: Bdf, tell: Chain) -> None: ...

    async def set_aside(self, devices: Sequence[Bdf], reason: str) -> None: ...
