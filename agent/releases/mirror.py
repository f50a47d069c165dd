"""A release of a source, brought into a directory that is a source itself.

Order: the artifacts first, each verified before it has its name, the manifest last, so that a tag
is never seen half-brought. What was interrupted goes on where it stopped. A tag that is here with
other contents is left alone, and so is an artifact that is another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from agent.host.files import write_atomic
from agent.model.release import Release
from agent.releases.answered import Answered, Remembering
from agent.releases.blocking import run
from agent.releases.build import TagTakenError
from agent.releases.fetcher import MAX_RESUMES, MOST_BYTES, Wanted, wanted_of
from agent.releases.manifest import read_release
from agent.releases.naming import IMAGES, Kind, manifest_path, signature_path
from agent.releases.partial import Partial
from agent.releases.port import ReleaseError, ReleaseSourceError
from agent.releases.source import Found, Source
from agent.releases.verify import check_file

_UNDER_WAY = ".pulled"  # a hidden directory of the mirror, for what is not whole

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is here now. `fresh`: the tag was not; `brought`: the artifacts that were not."""

    release: Release
    manifest: Path
    fresh: bool
    signed: bool
    brought: tuple[str, ...]


class Mirror:
    """A directory that is filled from a source; images from it or, where it has none, others."""

    def __init__(
        self, out: Path, source: Source, image_sources: Sequence[Source], executor: Executor
    ) -> None:
        self._out = out
        self._source = source
        self._image_sources = (source, *image_sources)
        self._executor = executor

    async def pull(self, repo: str, tag: str, tell: Tell) -> Pulled:
        """Have a release here, whole.

        Raises ReleaseError, TagTakenError, ReleaseNotFoundError, ReleaseSourceError, StorageError.
        """
        target = self._out / manifest_path(repo, tag)
        data = await self._manifest(repo, tag, target)
        release = await run(self._executor, lambda _: read_release(repo, tag, data))
        fresh = not await run(self._executor, lambda _: _is_there(target, data))
        signature = await self._source.signature(repo, tag)
        brought = [
            wanted.artifact.name
            for wanted in wanted_of(release)
            if await self._bring(wanted, tell)
        ]
        await run(self._executor, lambda _: self._place(repo, tag, data, signature))
        if isinstance(self._source, Remembering) and (known := self._source.known(repo, tag)):
            await run(
                self._executor, lambda _: write_atomic(_tag_file(target), known.tag.encode())
            )
        return Pulled(release, target, fresh, signature is not None, tuple(brought))

    async def _manifest(self, repo: str, tag: str, target: Path) -> bytes:
        """Its bytes; a server that tells versions sends them only if they changed."""
        if isinstance(self._source, Remembering):
            kept = await run(self._executor, lambda _: _kept(target))
            if kept is not None:
                self._source.remember(repo, tag, kept)
        return await self._source.manifest(repo, tag)

    def _place(self, repo: str, tag: str, data: bytes, signature: bytes | None) -> None:
        files = {signature_path(repo, tag): signature, manifest_path(repo, tag): data}
        for path, content in files.items():
            target = self._out / path
            if content is not None and not _has(target, content):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, content, mode=0o644)

    async def _bring(self, wanted: Wanted, tell: Tell) -> bool:
        """Whether it was not here. One that is here is looked at again, to the last byte."""
        target = self._out / IMAGES / wanted.artifact.name
        if target.exists():
            try:
                await run(self._executor, lambda check: check_file(target, wanted.key, check))
            except ReleaseError as error:
                raise TagTakenError(f"{target} is there with another content: {error}") from error
            return False
        source, found = await self._find(wanted)
        tell(f"{wanted.artifact.name}: {_size(found)}")
        partial = self._out / _UNDER_WAY / wanted.key
        await self._download(source, found, wanted, partial)
        await run(self._executor, lambda _: _put(partial, target))
        return True

    async def _find(self, wanted: Wanted) -> tuple[Source, Found]:
        for source in self._image_sources:
            found = await source.find(wanted.paths)
            if found is not None:
                return source, found
        raise ReleaseError(
            f"{wanted.artifact.name} is found neither beside the manifest nor under images/ of "
            "any source: name one that has the image (--image-source)"
        )

    async def _download(self, source: Source, found: Found, wanted: Wanted, path: Path) -> None:
        """Verified, or gone; one that broke off stays, for the next time to go on with."""
        limit = MOST_BYTES[Kind(wanted.artifact.name.rpartition(".")[2])]
        if found.size is not None and found.size > limit:
            raise ReleaseError(f"{wanted.artifact.name} has {found.size} bytes, more than {limit}")
        with Partial(path, found.path, found.size or limit) as partial:
            await run(self._executor, partial.recall)
            again = partial.offset > 0
            await _copied(source, found, partial)
            try:
                await run(self._executor, lambda check: partial.check(wanted.key, check))
            except ReleaseError as error:
                await run(self._executor, lambda _: partial.restart(None))
                if not again:
                    raise ReleaseError(f"{wanted.artifact.name}: {error}") from error
            else:
                return
        # What an earlier time left was wrong: once more, from nothing.
        await self._download(source, found, wanted, path)


async def _copied(source: Source, found: Found, partial: Partial) -> None:
    """All of it, going on while a broken connection brought something."""
    for attempt in range(MAX_RESUMES + 1):
        before = partial.offset
        try:
            await source.copy(found, partial)
        except ReleaseSourceError:
            if partial.offset <= before or attempt == MAX_RESUMES:
                raise
        else:
            return


def _put(partial: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.chmod(0o644)
    partial.replace(target)
    partial.with_name(f"{partial.name}.from").unlink(missing_ok=True)
    if not any(partial.parent.iterdir()):
        partial.parent.rmdir()


def _tag_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.etag")


def _kept(target: Path) -> Answered | None:
    try:
        return Answered(_tag_file(target).read_text("ascii"), target.read_bytes())
    except (OSError, UnicodeDecodeError):
        return None


def _is_there(target: Path, data: bytes) -> bool:
    if target.exists() and not _has(target, data):
        raise TagTakenError(
            f"{target} is there with another content: a tag never changes; what was pulled is kept"
        )
    return target.exists()


def _has(target: Path, data: bytes) -> bool:
    try:
        return target.read_bytes() == data
    except FileNotFoundError:
        return False


def _size(found: Found) -> str:
    return "size not told" if found.size is None else f"{found.size / (1 << 20):.1f} MiB"
