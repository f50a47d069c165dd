"""The content-addressed cache of this host: what lies here was verified, or does not count.

::

    artifacts/sha256-<hex>, verity-<root hash>   read-only files, put in place by rename
    artifacts/<key>.verified                     the stamp of the file that was verified
    partial/<key>, <key>.from                    a download under way, and what it is of
    manifests/<sha256>.json, .signature          manifests that were resolved once

A file counts only while its stamp (inode, size, mtime, ctime) is the recorded one: what was
replaced, cut or touched behind our back must be verified again. The stamp's own mtime is when the
artifact was last used. Methods block; all that change something must not run at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.host.files import (
    StorageError,
    StorageFullError,
    read_bounded,
    remove_scratch,
    storage_errors,
    sync_directory,
    write_atomic,
)
from agent.releases.manifest import MAX_MANIFEST_BYTES
from agent.releases.signature import MAX_BUNDLE_BYTES

log = logging.getLogger(__name__)

MAX_MANIFESTS = 256

_STAMP = ".verified"
_FROM = ".from"
_SIGNATURE = ".signature"


class Stamp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tells a file from any other, and from its own later self."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that counts against the bound."""

    key: str
    size: int
    used_at_ns: int


class Cache:
    """The directory. `max_bytes` bounds artifacts and partial downloads together."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._artifacts = root / "artifacts"
        self._partial = root / "partial"
        self._manifests = root / "manifests"
        self._stamps: dict[str, Stamp] = {}
        self._clean: set[Path] = set()

    def path(self, key: str) -> Path:
        """Where the artifact lies, or would."""
        return self._artifacts / key

    def partial_path(self, key: str) -> Path:
        """Where its download goes on."""
        return self._partial / key

    def partial_size(self, key: str) -> int:
        """How much of its download is here."""
        with storage_errors("examine", self.partial_path(key)):
            return self.partial_path(key).stat().st_size

    def is_verified(self, key: str) -> bool:
        """Whether it is here and is the very file that was verified: a stat, once it was read."""
        recorded = self._stamps.get(key) or self._read_stamp(key)
        return recorded is not None and recorded == _stamp(self.path(key))

    def exists(self, key: str) -> bool:
        """Whether a file is there, verified or not."""
        return self.path(key).is_file()

    def record(self, key: str) -> None:
        """Note that the file in place was verified just now."""
        stamp = _stamp(self.path(key))
        if stamp is None:
            raise StorageError(f"{self.path(key)} is gone again")
        write_atomic(self._stamp_path(key), msgspec.json.encode(stamp))
        self._stamps[key] = stamp

    def place(self, key: str) -> None:
        """Put a download, verified by the caller, in place for good: durable when this returns."""
        source = self.partial_path(key)
        self._ready(self._artifacts)
        with storage_errors("place", self.path(key)):
            descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            source.replace(self.path(key))
            sync_directory(self._artifacts)
        self.record(key)
        _remove(source.with_name(key + _FROM))

    def used(self, key: str) -> None:
        """It was used now: it will be evicted later than what was used before."""
        with contextlib.suppress(OSError):
            os.utime(self._stamp_path(key))

    def remove(self, key: str) -> None:
        """Remove an artifact and its partial download."""
        self._stamps.pop(key, None)
        for path in (
            self._stamp_path(key),  # first: without it the rest does not count
            self.path(key),
            self.partial_path(key),
            self.partial_path(key + _FROM),
        ):
            _remove(path)

    def make_room(
        self,
        wanted: Mapping[str, int],
        keep: AbstractSet[str] | None,
        *,
        verified: bool = True,
    ) -> None:
        """Evict the least recently used until every download under way fits.

        `wanted` are the downloads' keys and whole sizes. Nothing of them or of `keep` is touched;
        None keeps everything. Unless they are `verified` their sizes are only what a source says,
        and nothing is evicted for the cache's bound, but only where the disk has not the space.
        Raises StorageFullError with the numbers, nothing evicted, if it cannot be enough.
        """
        kept = {item.key: item for item in self._kept()}
        others = sorted(
            (item for key, item in kept.items() if key not in wanted),
            key=lambda item: item.used_at_ns,
        )
        total = sum(wanted.values()) + sum(item.size for item in others)
        coming = sum(
            max(0, size - (kept[key].size if key in kept else 0)) for key, size in wanted.items()
        )
        movable = [item for item in others if keep is not None and item.key not in keep]
        self._require_enough(total, coming, sum(item.size for item in movable))
        for item in movable:
            if (not verified or total <= self.max_bytes) and coming <= self._free():
                return
            log.info("artifact evicted", extra={"artifact": item.key, "bytes": item.size})
            self.remove(item.key)
            total -= item.size
        if coming > self._free():  # less came free than the files were long: they had holes
            self._require_enough(0, coming, 0)

    def _require_enough(self, total: int, coming: int, movable: int) -> None:
        if total - movable > self.max_bytes:
            raise StorageFullError(
                f"the release cache may hold {self.max_bytes} bytes; what is in use and what is "
                f"being fetched come to {total - movable}"
            )
        free = self._free()
        if coming > free + movable:
            raise StorageFullError(
                f"{self._artifacts}: {coming} bytes are needed, {free} are free"
            )

    def kept(self) -> list[Kept]:
        """All that counts against the bound, the least recently used first."""
        return sorted(self._kept(), key=lambda item: item.used_at_ns)

    def keep_manifest(self, data: bytes, protected: AbstractSet[str]) -> str:
        """Keep a manifest by its digest, returned; the oldest that are not protected go."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._manifests / f"{digest}.json"
        self._ready(self._manifests)
        if self.manifest(digest) is None:
            write_atomic(path, data)
        self._prune_manifests(protected | {digest})
        return digest

    def keep_signature(self, digest: str, bundle: bytes) -> None:
        """Keep the signature of a manifest, as long as that is kept; of one that is not, nothing.

        It proves itself: whoever takes it verifies it.
        """
        if (self._manifests / f"{digest}.json").exists():
            write_atomic(self._manifests / f"{digest}{_SIGNATURE}", bundle)

    def signature(self, digest: str) -> bytes | None:
        """A signature that was kept, as it is found."""
        try:
            return read_bounded(self._manifests / f"{digest}{_SIGNATURE}", MAX_BUNDLE_BYTES)
        except StorageError:
            return None

    def manifest(self, digest: str) -> bytes | None:
        """A manifest that was kept; one that was damaged since does not count."""
        try:
            data = read_bounded(self._manifests / f"{digest}.json", MAX_MANIFEST_BYTES)
        except StorageError:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def _prune_manifests(self, protected: AbstractSet[str]) -> None:
        paths = list(self._manifests.glob("*.json"))
        if len(paths) <= MAX_MANIFESTS:
            return
        paths.sort(key=lambda path: _mtime_ns(path) or 0)
        unprotected = [path for path in paths if path.stem not in protected]
        for path in unprotected[: len(paths) - MAX_MANIFESTS]:
            _remove(path.with_suffix(_SIGNATURE))  # first: alone it would never go
            _remove(path)

    def _kept(self) -> list[Kept]:
        found: dict[str, Kept] = {}
        for directory in (self._artifacts, self._partial):
            for name, status in _files(directory):
                if name.endswith((_STAMP, _FROM)) or name.startswith("."):
                    continue
                before = found.get(name)
                used = _mtime_ns(self._stamp_path(name)) or status.st_mtime_ns
                found[name] = Kept(name, status.st_size + (before.size if before else 0), used)
        return list(found.values())

    def _free(self) -> int:
        self._ready(self._artifacts)
        with storage_errors("examine", self._artifacts):
            status = os.statvfs(self._artifacts)
        return status.f_bavail * status.f_frsize

    def _ready(self, directory: Path) -> None:
        """Make a directory of the cache; the first time, clean what a killed write left there."""
        with storage_errors("make", directory):
            directory.mkdir(parents=True, exist_ok=True)
        if directory not in self._clean:
            remove_scratch(directory)
            self._clean.add(directory)

    def _stamp_path(self, key: str) -> Path:
        return self._artifacts / (key + _STAMP)

    def _read_stamp(self, key: str) -> Stamp | None:
        try:
            stamp = msgspec.json.decode(self._stamp_path(key).read_bytes(), type=Stamp)
        except (OSError, msgspec.MsgspecError):
            return None
        self._stamps[key] = stamp
        return stamp


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(
        inode=status.st_ino,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def _mtime_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _files(directory: Path) -> list[tuple[str, os.stat_result]]:
    try:
        with os.scandir(directory) as entries:
            return [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    except OSError:
        return []


def _remove(path: Path) -> None:
    with storage_errors("remove", path):
        path.unlink(missing_ok=True)
