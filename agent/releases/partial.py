"""A download under way: appended to, hashed as it comes, found again after a crash.

Beside the bytes lies what they are of (the source's path and the version that it told), so that a
later download goes on only with the same file. What was written is not yet believed: the caller
compares the hash, or the verity tree, before it is put in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from agent.host.files import StorageFullError, storage_errors, write_atomic
from agent.host.sparse import write_sparse
from agent.releases.blocking import Check
from agent.releases.port import ReleaseError
from agent.releases.verify import check_file

_CHUNK = 1 << 20


class _From(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    validator: str | None


class Partial:
    """The sink of one download. One user at a time; methods block; no space: StorageFullError."""

    def __init__(self, path: Path, source_path: str, max_bytes: int) -> None:
        self._path = path
        self._from_path = path.with_name(path.name + ".from")
        self._source_path = source_path
        self._max_bytes = max_bytes
        self._offset = 0
        self._validator: str | None = None
        self._hash = hashlib.sha256()
        with storage_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                path.chmod(0o600)  # a crash came just before it was put in place, read-only
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
        if isinstance(error, StorageFullError):
            self._path.unlink(missing_ok=True)  # gives back what could not suffice

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def validator(self) -> str | None:
        return self._validator

    def recall(self, check: Check) -> None:
        """Find what an earlier download left, and hash it, if it is of the same file."""
        known = self._read_from()
        if known is None or known.path != self._source_path or known.validator is None:
            self.restart(None)
            return
        with storage_errors("read", self._path):
            while chunk := os.pread(self._descriptor, _CHUNK, self._offset):
                check()
                self._hash.update(chunk)
                self._offset += len(chunk)
        self._validator = known.validator

    def restart(self, validator: str | None) -> None:
        """Drop the bytes; the next ones are of this version of the file."""
        with storage_errors("write", self._path):
            os.ftruncate(self._descriptor, 0)
        told = _From(path=self._source_path, validator=validator)
        write_atomic(self._from_path, msgspec.json.encode(told))
        self._offset = 0
        self._validator = validator
        self._hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append. A source that sends more than it announced, or is allowed, is stopped here."""
        if self._offset + len(chunk) > self._max_bytes:
            raise ReleaseError(f"{self._source_path}: more than {self._max_bytes} bytes came")
        with storage_errors("write", self._path):
            write_sparse(self._descriptor, chunk, self._offset)
        self._hash.update(chunk)
        self._offset += len(chunk)

    def check(self, key: str, check: Check) -> None:
        """Whether all that was written is the artifact that the key names; else ReleaseError."""
        check_file(self._path, key, check, sha256=self._hash.hexdigest())

    def _read_from(self) -> _From | None:
        try:
            return msgspec.json.decode(self._from_path.read_bytes(), type=_From)
        except (OSError, msgspec.MsgspecError):
            return None
