"""Where releases come from: a directory, an https URL or GitHub, behind one small port.

A source answers three questions (the manifest's bytes, where an artifact lies, the artifact's
bytes from an offset on) and believes nothing: who asks checks what came.
"""

from __future__ import annotations

import errno
import os
import ssl
import stat
import urllib.parse
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.host.files import open_beneath
from agent.releases.blocking import Check, run
from agent.releases.manifest import MAX_MANIFEST_BYTES
from agent.releases.naming import manifest_path, signature_path
from agent.releases.port import ReleaseError, ReleaseNotFoundError, ReleaseSourceError
from agent.releases.signature import MAX_BUNDLE_BYTES

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact at a source: its path there, and its size if the source tells."""

    path: str
    size: int | None


class Sink(Protocol):
    """Where bytes go. Its methods block; they are called in a thread, one at a time.

    `validator` names the version of the file that the bytes before `offset` were taken from.
    """

    @property
    def offset(self) -> int: ...

    @property
    def validator(self) -> str | None: ...

    def restart(self, validator: str | None) -> None:
        """Drop what is there and begin again, with another version of the file."""
        ...

    def write(self, chunk: bytes) -> None: ...


class Source(Protocol):
    """A place that holds releases. Every method raises ReleaseSourceError when it cannot tell."""

    async def manifest(self, repo: str, tag: str) -> bytes:
        """The manifest's bytes. ReleaseNotFoundError if there is none."""
        ...

    async def signature(self, repo: str, tag: str) -> bytes | None:
        """The bytes of the manifest's Sigstore bundle; None if there is none."""
        ...

    async def find(self, paths: Iterable[str]) -> Found | None:
        """The first of these paths that exists."""
        ...

    async def copy(self, found: Found, sink: Sink) -> None:
        """Write all of it into the sink, going on at its offset if it is still the same file."""
        ...

    async def close(self) -> None: ...


def open_source(
    text: str,
    executor: Executor,
    tls: ssl.SSLContext | None = None,
    github_token_file: Path | None = None,
    *,
    field: str = "releases.source",
) -> Source:
    """A source from the configuration's text: a directory, a `file:` or an https URL, `github`.

    `github:HOST[:PORT]` is another installation of GitHub than the public one; the token is for
    these. Raises ReleaseSourceError, naming `field`, for a text that is none of them.
    """
    parts = urllib.parse.urlsplit(text)
    if parts.scheme == "https":
        from agent.releases.https import HttpsSource

        return HttpsSource(text, executor, tls, field=field)
    if text == "github" or parts.scheme == "github":
        from agent.releases.github import GithubSource, github_host

        return GithubSource(github_host(text) or "", executor, tls, github_token_file)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return DirectorySource(Path(urllib.parse.unquote(parts.path)), executor)
    if "://" in text or parts.scheme == "file":
        raise ReleaseSourceError(f"{field}: {text}: must be a directory, an https URL, or github")
    return DirectorySource(Path(text), executor)


class DirectorySource:
    """Releases in a directory of this host. Files may be replaced by others, never changed.

    Symlinks are followed within the directory alone: what a release is read from is what its
    publisher put there, and not what else the agent may read.
    """

    def __init__(self, root: Path, executor: Executor) -> None:
        self._root = root
        self._executor = executor

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    async def manifest(self, repo: str, tag: str) -> bytes:
        data = await self._small(manifest_path(repo, tag), MAX_MANIFEST_BYTES)
        if data is None:
            raise ReleaseNotFoundError(f"no release {repo} {tag} in {self._root}")
        return data

    async def signature(self, repo: str, tag: str) -> bytes | None:
        return await self._small(signature_path(repo, tag), MAX_BUNDLE_BYTES)

    async def _small(self, path: str, max_bytes: int) -> bytes | None:
        def read(check: Check) -> bytes | None:
            found = self._open(path)
            if found is None:
                return None
            with os.fdopen(found, "rb", buffering=0) as file:
                try:
                    data = file.read(max_bytes + 1)
                except OSError as error:
                    raise self._unreadable(path) from error
            if data is not None and len(data) > max_bytes:
                raise ReleaseError(f"{path}: longer than {max_bytes} bytes")
            return data

        return await run(self._executor, read)

    async def find(self, paths: Iterable[str]) -> Found | None:
        def look(check: Check) -> Found | None:
            for path in paths:
                size = self._size(path)
                if size is not None:
                    return Found(path, size)
            return None

        return await run(self._executor, look)

    async def copy(self, found: Found, sink: Sink) -> None:
        await run(self._executor, lambda check: self._copy(found, sink, check))

    async def close(self) -> None:
        """Nothing is held."""

    def _size(self, path: str) -> int | None:
        """The size of a regular file; None if there is nothing of that name."""
        descriptor = self._open(path)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb", buffering=0):
            return os.fstat(descriptor).st_size

    def _open(self, path: str) -> int | None:
        """A regular file of the source's; None if there is nothing of that name."""
        try:
            descriptor = open_beneath(self._root, path)
        except (FileNotFoundError, NotADirectoryError):
            if not self._root.is_dir():
                raise ReleaseSourceError(f"{self._root} is not a directory") from None
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ReleaseSourceError(
                    f"{self._root / path}: a symlink leads out of the source; copy the file there"
                ) from error
            raise self._unreadable(path) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ReleaseSourceError(f"{self._root / path} is not a file")
        return descriptor

    def _copy(self, found: Found, sink: Sink, check: Check) -> None:
        descriptor = self._open(found.path)
        if descriptor is None:
            raise self._unreadable(found.path)
        with os.fdopen(descriptor, "rb", buffering=0):
            status = os.fstat(descriptor)
            version = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
            if sink.validator != version or sink.offset > status.st_size:
                sink.restart(version)
            while True:
                check()
                try:
                    chunk = os.pread(descriptor, CHUNK, sink.offset)
                except OSError as error:
                    raise self._unreadable(found.path) from error
                if not chunk:
                    return
                sink.write(chunk)

    def _unreadable(self, path: str) -> ReleaseSourceError:
        return ReleaseSourceError(f"{self._root / path} cannot be read")
