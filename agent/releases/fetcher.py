"""Brings artifacts into the cache: each downloaded once, however many ask, and verified.

What a fetch under way needs is pinned, and a pin is set before the cache is asked: eviction runs
under the same lock as that question, so that it cannot come between the answer and its use.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from agent.host.singleflight import Singleflight
from agent.model.release import Artifact, Release
from agent.releases.blocking import run
from agent.releases.cache import Cache, Kept
from agent.releases.image_sources import ImageSources, Located
from agent.releases.manifest import Manifest, parse_manifest
from agent.releases.naming import Kind, artifact_paths
from agent.releases.partial import Partial
from agent.releases.port import ReleaseError, ReleaseSourceError
from agent.releases.verify import check_file

log = logging.getLogger(__name__)

MAX_RESUMES = 5
MOST_BYTES = {Kind.KERNEL: 1 << 30, Kind.INITRD: 8 << 30, Kind.ROOT_DISK: 256 << 30}

T = TypeVar("T")


class TransferEnd(Enum):
    """How a transfer ended, if not by an error."""

    WHOLE = auto()
    RESUMED_IN_VAIN = auto()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One artifact of a release. `key` is its content's name in the cache."""

    key: str
    artifact: Artifact
    paths: tuple[str, ...]


class Fetcher:
    """One cache, filled from the host's sources. Every change of it goes through here."""

    def __init__(self, sources: ImageSources, cache: Cache, executor: Executor) -> None:
        self._sources = sources
        self._cache = cache
        self._executor = executor
        self._singleflight = Singleflight()
        self._changing = asyncio.Lock()
        self._downloads: dict[str, int] = {}
        self._pins: Counter[str] = Counter()
        self._keys: dict[str, frozenset[str]] = {}
        self.protected: frozenset[str] = frozenset()

    async def bring(self, wanted: Sequence[Wanted]) -> None:
        """Have all of them here, verified. They stay at least until this returns."""
        with self._pinned([item.key for item in wanted]):
            for item in wanted:
                await self._singleflight.run(item.key, functools.partial(self._bring, item))

    async def keep_manifest(self, data: bytes, signature: bytes | None = None) -> None:
        """Keep a manifest, so that its digest resolves without the source; with its signature."""

        def keep() -> None:
            digest = self._cache.keep_manifest(data, self.protected)
            if signature is not None:
                self._cache.keep_signature(digest, signature)

        await self._change(keep)

    async def keep_signature(self, digest: str, signature: bytes) -> None:
        """Keep the signature of a manifest that is kept."""
        await self._change(lambda: self._cache.keep_signature(digest, signature))

    async def kept(self) -> list[tuple[Kept, bool]]:
        """What is here, the least recently used first, and whether it must stay."""
        async with self._changing:
            return await run(self._executor, lambda _: self._judged())

    async def prune(self, unused_since_ns: int) -> list[Kept]:
        """Remove what need not stay and was not used since then; returns it."""
        async with self._changing:
            return await run(self._executor, lambda _: self._prune(unused_since_ns))

    def _prune(self, unused_since_ns: int) -> list[Kept]:
        removed = []
        for item, needed in self._judged():
            if not needed and item.used_at_ns <= unused_since_ns:
                log.info("artifact pruned", extra={"artifact": item.key, "bytes": item.size})
                self._cache.remove(item.key)
                removed.append(item)
        return removed

    def _judged(self) -> list[tuple[Kept, bool]]:
        keep = self._keep(frozenset(self._pins) | frozenset(self._downloads), self.protected)
        return [(item, keep is None or item.key in keep) for item in self._cache.kept()]

    async def _bring(self, wanted: Wanted) -> None:
        if await self._take(wanted.key):
            return
        await self._verify_in_place(wanted)
        if not await self._take(wanted.key):
            await self._download(wanted)

    async def _take(self, key: str) -> bool:
        """Whether it is here. Eviction cannot come between: the key is pinned by now."""
        async with self._changing:
            if not self._cache.is_verified(key):
                return False
            self._cache.used(key)
            return True

    async def _verify_in_place(self, wanted: Wanted) -> None:
        """A file whose stamp is gone or another may still be the right one."""
        path = self._cache.path(wanted.key)
        if not self._cache.exists(wanted.key):
            return
        try:
            await run(self._executor, lambda check: check_file(path, wanted.key, check))
        except ReleaseError:
            log.warning("artifact in the cache was damaged", extra={"artifact": wanted.key})
            await self._change(lambda: self._cache.remove(wanted.key))
        else:
            await self._change(lambda: self._cache.record(wanted.key))

    async def _download(self, wanted: Wanted) -> None:
        located = await self._sources.find(wanted.artifact.name, wanted.paths)
        if located is None:
            raise ReleaseError(f"{wanted.artifact.name} is no longer at the source")
        _require_believable(wanted, located.found.size)
        with self._downloading(wanted.key, located.found.size or 0):
            await self._make_room(dict(self._downloads), verified=False)
            try:
                if await self._transfer(located, wanted) is TransferEnd.RESUMED_IN_VAIN:
                    # What an earlier download left was wrong: once more, from nothing.
                    await self._transfer(located, wanted)
            except ReleaseError as error:
                await self._change(lambda: self._cache.remove(wanted.key))
                raise ReleaseError(f"{wanted.artifact.name}: {error}") from error
            # Only now is it known that it is worth the place of others.
            size = self._cache.partial_size(wanted.key)
            await self._make_room({wanted.key: size}, verified=True)
            await self._change(lambda: self._cache.place(wanted.key))
        log.info("artifact fetched", extra={"artifact": wanted.key, "source": located.origin})

    async def _make_room(self, downloads: dict[str, int], *, verified: bool) -> None:
        async with self._changing:
            pins, protected = frozenset(self._pins), self.protected
            await run(
                self._executor,
                lambda _: self._cache.make_room(
                    downloads, self._keep(pins, protected), verified=verified
                ),
            )

    async def _transfer(self, located: Located, wanted: Wanted) -> TransferEnd:
        """Download and verify; while a broken connection brought something, go on.

        ReleaseError if what came whole, in one version, is not the artifact.
        """
        found = located.found
        limit = found.size if found.size is not None else self._cache.max_bytes
        path = self._cache.partial_path(wanted.key)
        with Partial(path, located.origin, limit) as partial:
            await run(self._executor, partial.recall)
            resumed = partial.offset > 0
            for attempt in range(MAX_RESUMES + 1):
                before = partial.offset
                try:
                    await located.source.copy(found, partial)
                    break
                except ReleaseSourceError:
                    if partial.offset <= before or attempt == MAX_RESUMES:
                        raise
                    resumed = True
            try:
                await run(self._executor, lambda check: partial.check(wanted.key, check))
            except ReleaseError:
                if not resumed:
                    raise
                await run(self._executor, lambda _: partial.restart(None))
                return TransferEnd.RESUMED_IN_VAIN
        return TransferEnd.WHOLE

    def _keep(self, pins: frozenset[str], protected: frozenset[str]) -> frozenset[str] | None:
        """Keys that must stay; None (all of them) if a protected manifest is not known here."""
        keys = set(pins)
        for digest in protected:
            known = self._keys.get(digest)
            if known is None:
                manifest = self._protected_manifest(digest)
                if manifest is None:
                    return None
                known = frozenset(
                    _keys(manifest.kernel_sha256, manifest.initrd_sha256, manifest.root_hash)
                )
                self._keys[digest] = known
            keys |= known
        return frozenset(keys)

    def _protected_manifest(self, digest: str) -> Manifest | None:
        """None if it is not kept, or is one that this version of the agent does not read."""
        data = self._cache.manifest(digest)
        if data is None:
            log.warning("protected manifest is not kept", extra={"manifest": digest})
            return None
        try:
            return parse_manifest(data)
        except ReleaseError as error:
            log.warning(
                "protected manifest is not read", extra={"manifest": digest, "error": str(error)}
            )
            return None

    @contextmanager
    def _pinned(self, keys: list[str]) -> Iterator[None]:
        self._pins.update(keys)
        try:
            yield
        finally:
            self._pins.subtract(keys)
            self._pins = +self._pins

    @contextmanager
    def _downloading(self, key: str, size: int) -> Iterator[None]:
        self._downloads[key] = size
        try:
            yield
        finally:
            del self._downloads[key]

    async def _change(self, work: Callable[[], T]) -> T:
        """Change the cache: in a thread, one change at a time."""
        async with self._changing:
            return await run(self._executor, lambda _: work())


def _require_believable(wanted: Wanted, size: int | None) -> None:
    """Refuse a size that no such artifact has, before anything is done for it."""
    suffix = wanted.artifact.name.rpartition(".")[2]
    most = MOST_BYTES[Kind(suffix)]
    if size is not None and size > most:
        raise ReleaseError(
            f"{wanted.artifact.name} has {size} bytes at the source; a {suffix} has at most {most}"
        )


def wanted_of(release: Release) -> list[Wanted]:
    """Kernel, initrd and root disk of a release; nothing of one that is launched in one file,
    which this agent does not launch.
    """
    if release.kernel is None or release.initrd is None:
        return []
    artifacts = (release.kernel, release.initrd, release.root_disk)
    keys = _keys(release.kernel.sha256, release.initrd.sha256, release.root_hash)
    return [
        Wanted(key, artifact, tuple(artifact_paths(release.repo, release.tag, artifact.name)))
        for key, artifact in zip(keys, artifacts, strict=True)
    ]


def _keys(kernel: str | None, initrd: str | None, root_hash: str) -> tuple[str, str, str]:
    return f"sha256-{kernel}", f"sha256-{initrd}", f"verity-{root_hash}"
