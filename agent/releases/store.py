"""Releases of this host: manifests resolved, artifacts fetched and known; implements the port.

Invariant: what `resolve` returns was read in full and agrees with itself, and its artifacts were
seen to exist; what `fetch` and `local` return was compared, to the last byte, with what the
manifest says.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from agent.config import ReleasesConfig
from agent.model.release import LocalImage, Release
from agent.releases.blocking import run
from agent.releases.cache import Cache, Kept
from agent.releases.fetcher import Fetcher, wanted_of
from agent.releases.firmware import FirmwareShelf
from agent.releases.image_sources import ImageSource, ImageSources, open_image_sources
from agent.releases.manifest import read_release
from agent.releases.port import (
    KeptImage,
    LaunchFormatError,
    ReleaseError,
    ReleaseSourceError,
)
from agent.releases.signature import SignatureRequiredError, SignatureRule
from agent.releases.source import Source, open_source

log = logging.getLogger(__name__)

PATIENCE_S = 30.0  # for all that a tag is asked: a few small answers
_REMEMBERED = 16
_GIB = 1 << 30


class ReleaseStore:
    """Releases from a source, through a cache. `source` None: only what is here already.

    `image_sources`: where the files of images are looked for that the source has not.
    `signatures`: what a tag's signature must be for the tag to be admitted; None: it needs none.
    """

    def __init__(
        self,
        source: Source | None,
        cache: Cache,
        executor: Executor,
        *,
        models_dir: Path | None = None,
        firmware_dir: Path | None = None,
        signatures: SignatureRule | None = None,
        image_sources: Sequence[ImageSource] = (),
    ) -> None:
        self._source = source
        self._sources = ImageSources(source, image_sources)
        self._cache = cache
        self._executor = executor
        self._fetcher = Fetcher(self._sources, cache, executor)
        self._models_dir = models_dir
        self._firmware = FirmwareShelf(firmware_dir)
        self._signatures = signatures
        self._releases: OrderedDict[tuple[str, str, str], Release] = OrderedDict()

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        """Read and check a release; see the port."""
        async with _patience(repo, tag):
            return await self._resolve(repo, tag, digest)

    async def _resolve(self, repo: str, tag: str, digest: str | None) -> Release:
        release = await self._known(repo, tag, digest) if digest else None
        if release is None:
            release = await self._from_source(repo, tag, digest)
        if release.firmware_sha256 and not self._firmware.looked_for(release.firmware_sha256):
            await self._look_for_firmware(release.firmware_sha256)
        return release

    async def require_signed(self, repo: str, tag: str, digest: str) -> None:
        """Ask a release that was taken before for its signature, as a tag is; see the port."""
        async with _patience(repo, tag):
            await self._require_signed(repo, tag, digest)

    async def _require_signed(self, repo: str, tag: str, digest: str) -> None:
        rule = self._signatures
        if rule is None:
            return
        kept = await run(self._executor, lambda _: self._cache.signature(digest))
        if kept is not None:
            try:
                await self._check_signature(rule, repo, tag, digest, kept)
            except SignatureRequiredError as error:  # of another tag, or by another rule
                log.info("kept signature does not hold", extra={"tag": tag, "error": str(error)})
            else:
                return
        if self._source is None:
            raise ReleaseSourceError("no source of releases is configured (releases.source)")
        bundle = await self._source.signature(repo, tag)
        await self._check_signature(rule, repo, tag, digest, bundle)
        assert bundle is not None
        await self._fetcher.keep_signature(digest, bundle)

    async def fetch(self, release: Release) -> LocalImage:
        """Bring every artifact here, verified; see the port."""
        if release.igvm is not None:
            raise LaunchFormatError(
                f"{release.repo} {release.tag} is launched in one measured file (IGVM), which "
                "this agent does not fetch"
            )
        models = self._models(release)
        for model, path in zip(release.models, models, strict=True):
            if not path.is_file():
                raise ReleaseError(f"model pack {model} is not on this host: no file {path}")
        await self._fetcher.bring(wanted_of(release))
        if release.firmware_sha256:
            await self._look_for_firmware(release.firmware_sha256)
        return self._image(release, models)

    def local(self, release: Release) -> LocalImage | None:
        """The artifacts, if all are here and verified; see the port."""
        if release.igvm is not None:
            return None
        if not all(self._cache.is_verified(item.key) for item in wanted_of(release)):
            return None
        if release.firmware_sha256 and not self._firmware.looked_for(release.firmware_sha256):
            return None
        if release.models and self._models_dir is None:
            return None
        models = self._models(release)
        return self._image(release, models) if all(p.is_file() for p in models) else None

    async def firmware(self, release: Release) -> Path | None:
        """The firmware that a release names, if a file of this host is it; it is looked for."""
        if release.firmware_sha256 is None:
            return None
        await self._look_for_firmware(release.firmware_sha256)
        return self._firmware.known(release.firmware_sha256)

    def protect(self, digests: frozenset[str]) -> None:
        """Name the manifests whose artifacts stay; see the port."""
        self._fetcher.protected = digests

    async def images(self) -> Sequence[KeptImage]:
        """What is kept; see the port."""
        return [_image(item, needed=needed) for item, needed in await self._fetcher.kept()]

    async def prune(self, unused_for_s: float) -> Sequence[KeptImage]:
        """Remove what nothing needs; see the port."""
        since_ns = time.time_ns() - int(unused_for_s * 1e9)
        return [_image(item, needed=False) for item in await self._fetcher.prune(since_ns)]

    async def close(self) -> None:
        """Close the connections to the sources. Fetches under way end with their waiters."""
        await self._sources.close()

    async def _known(self, repo: str, tag: str, digest: str) -> Release | None:
        release = self._releases.get((repo, tag, digest))
        if release is not None:
            self._releases.move_to_end((repo, tag, digest))
            return release
        data = await run(self._executor, lambda _: self._cache.manifest(digest))
        return self._remember(await self._read(repo, tag, data)) if data is not None else None

    async def _from_source(self, repo: str, tag: str, digest: str | None) -> Release:
        if self._source is None:
            raise ReleaseSourceError("no source of releases is configured (releases.source)")
        data = await self._source.manifest(repo, tag)
        signature = None
        if self._signatures is not None and digest is None:  # before anything in it is read
            signature = await self._source.signature(repo, tag)
            await self._check_signature(
                self._signatures, repo, tag, hashlib.sha256(data).hexdigest(), signature
            )
        release = await self._read(repo, tag, data)
        if digest is not None and release.digest != digest:
            raise ReleaseError(
                f"{repo} {tag}: the source now has another manifest (SHA-256 {release.digest}) "
                f"than the one that was taken (SHA-256 {digest})"
            )
        await self._check_published(release)
        await self._fetcher.keep_manifest(data, signature)
        return self._remember(release)

    async def _read(self, repo: str, tag: str, data: bytes) -> Release:
        return await run(self._executor, lambda _: read_release(repo, tag, data))

    async def _check_signature(
        self, rule: SignatureRule, repo: str, tag: str, digest: str, bundle: bytes | None
    ) -> None:
        await run(self._executor, lambda _: rule.check(repo, tag, digest, bundle))

    async def _check_published(self, release: Release) -> None:
        """Refuse a tag whose artifacts are not there (yet)."""
        missing = [
            item.artifact.name
            for item in wanted_of(release)
            if not self._cache.is_verified(item.key)
            and await self._sources.find(item.artifact.name, item.paths) is None
        ]
        if missing:
            elsewhere = self._sources.asked(release.config)
            raise ReleaseError(
                f"{release.repo} {release.tag} is half-published: {', '.join(missing)} found "
                f"neither beside its manifest nor under images/{elsewhere}"
            )

    def _remember(self, release: Release) -> Release:
        self._releases[release.repo, release.tag, release.digest] = release
        while len(self._releases) > _REMEMBERED:
            self._releases.popitem(last=False)
        return release

    async def _look_for_firmware(self, sha256: str) -> None:
        await run(self._executor, lambda check: self._firmware.find(sha256, check))

    def _models(self, release: Release) -> tuple[Path, ...]:
        if not release.models:
            return ()
        if self._models_dir is None:
            raise ReleaseError(
                f"{release.repo} {release.tag} needs model packs: releases.models_dir is not set"
            )
        return tuple(self._models_dir / model for model in release.models)

    def _image(self, release: Release, models: tuple[Path, ...]) -> LocalImage:
        kernel, initrd, root_disk = (self._cache.path(item.key) for item in wanted_of(release))
        firmware = release.firmware_sha256
        return LocalImage(
            kernel=kernel,
            initrd=initrd,
            root_disk=root_disk,
            firmware=self._firmware.known(firmware) if firmware else None,
            models=models,
        )


@asynccontextmanager
async def _patience(repo: str, tag: str) -> AsyncIterator[None]:
    """A source may answer a byte at a time: whoever waits for it is told."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield
    except TimeoutError:
        raise ReleaseSourceError(
            f"{repo} {tag} was not resolved within {PATIENCE_S:g} s: the source of releases "
            "(releases.source) answers too slowly"
        ) from None


def open_releases(
    config: ReleasesConfig,
    *,
    state_dir: Path,
    firmware_dir: Path | None = None,
    tls: ssl.SSLContext | None = None,
) -> ReleaseStore:
    """The releases that a configuration describes. Nothing is read or made before it is needed.

    `tls` is what an https source is trusted by, if not the system's certificates. Raises
    ReleaseSourceError for a source that is neither a directory, nor an https URL, nor github.
    """
    executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="releases")
    return ReleaseStore(
        _source(config, executor, tls),
        Cache(config.cache_dir or state_dir / "cache", int(config.cache_max_gib * _GIB)),
        executor,
        models_dir=config.models_dir,
        firmware_dir=firmware_dir,
        signatures=SignatureRule(config.signature) if config.require_signature else None,
        image_sources=open_image_sources(config.image_sources, executor, tls),
    )


def _source(
    config: ReleasesConfig, executor: Executor, tls: ssl.SSLContext | None
) -> Source | None:
    if config.source is None:
        return None
    return open_source(config.source, executor, tls, config.github_token_file)


def _image(item: Kept, *, needed: bool) -> KeptImage:
    used_at = dt.datetime.fromtimestamp(item.used_at_ns / 1e9, dt.UTC)
    return KeptImage(key=item.key, bytes=item.size, used_at=used_at, needed=needed)
