"""Answers on disk: a file each, whole or not there; bounded, the oldest going first.

Nothing is believed because it lies here: what is read is authenticated as if it had just come. A
file that is not ours, or damaged, is as good as none. Everything here blocks for as long as the
disk does.
"""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Literal

import msgspec

from agent.attestation.collateral_cache.answer import MAX_BODY_BYTES, MAX_CHAIN_CHARS, VendorAnswer
from agent.host.files import (
    FileAbsentError,
    StorageError,
    make_private_directory,
    read_bounded,
    remove_scratch,
    storage_errors,
    write_atomic,
)
from agent.strict_json import StrictJsonError, decode_strict_json

log = logging.getLogger(__name__)

MAX_FILES = 256
_MAX_FILE_BYTES = 4 * MAX_BODY_BYTES // 3 + 2 * MAX_CHAIN_CHARS + 1024
_OURS = re.compile(r"(amd|intel|latest|nvidia)-[a-z0-9._-]{1,190}\.json", re.ASCII)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    name: str
    answer: VendorAnswer


class DiskCache:
    """One directory of answers by name. It is made with the first of them."""

    def __init__(self, directory: Path, *, max_files: int = MAX_FILES) -> None:
        self._directory = directory
        self._max_files = max_files

    def load(self, name: str) -> VendorAnswer | None:
        """What lies here under this name, if anything can be read that is of this form.

        A file without `.json` is a bare body, as an operator gets it from the vendor.
        """
        return self._wrapped(name) or self._bare(name)

    def store(self, name: str, answer: VendorAnswer) -> None:
        """Keep an answer; the oldest go where there are too many. Raises StorageError."""
        make_private_directory(self._directory)
        remove_scratch(self._directory)
        write_atomic(self._path(name), msgspec.json.encode(_File(name=name, answer=answer)))
        with storage_errors("clean", self._directory):
            self._evict()

    def _wrapped(self, name: str) -> VendorAnswer | None:
        data = self._read(self._path(name), _MAX_FILE_BYTES)
        if data is None:
            return None
        try:
            file = decode_strict_json(data, _File)
        except StrictJsonError:
            log.warning("collateral on disk is damaged", extra={"file": self._path(name).name})
            return None
        return file.answer if file.name == name else None

    def _bare(self, name: str) -> VendorAnswer | None:
        data = self._read(self._directory / name, MAX_BODY_BYTES)
        return None if data is None else VendorAnswer(body=data)

    def _read(self, path: Path, max_bytes: int) -> bytes | None:
        try:
            return read_bounded(path, max_bytes)
        except FileAbsentError:
            return None
        except StorageError as error:
            log.warning("collateral on disk is not read", extra={"error": str(error)})
            return None

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _evict(self) -> None:
        """Only files of ours are counted, and removed; revocation lists, a few, stay for good."""
        ours: list[tuple[int, Path]] = []
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _OURS.fullmatch(path.name) and "-crl" not in path.name:
                    ours.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(ours)[: max(0, len(ours) - self._max_files)]:
            path.unlink(missing_ok=True)
