"""Firmware images of this host, found by what they are and not by how they are named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from agent.releases.blocking import Check

_MAX_BYTES = 64 << 20


class FirmwareShelf:
    """The files of a directory by their SHA-256. A file is hashed once, until it changes."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._hashed: dict[Path, tuple[tuple[int, int, int], str]] = {}
        self._looked_for: set[str] = set()

    def looked_for(self, sha256: str) -> bool:
        """Whether `find` was ever asked: before that, `known` cannot tell."""
        return sha256 in self._looked_for

    def known(self, sha256: str) -> Path | None:
        """The file, if it was found before and is unchanged: a stat."""
        for path, (version, digest) in list(self._hashed.items()):
            if digest == sha256 and _version(path) == version:
                return path
        return None

    def find(self, sha256: str, check: Check) -> Path | None:
        """Look through the directory, in a thread; None if no file is that firmware."""
        self._looked_for.add(sha256)
        for path in self._files():
            version = _version(path)
            if version is None or version[1] > _MAX_BYTES:
                continue
            check()
            known = self._hashed.get(path)
            if known is None or known[0] != version:
                try:
                    known = (version, hashlib.sha256(path.read_bytes()).hexdigest())
                except OSError:
                    continue
                self._hashed[path] = known
            if known[1] == sha256:
                return path
        return None

    def _files(self) -> list[Path]:
        if self._directory is None:
            return []
        try:
            return sorted(path for path in self._directory.iterdir() if path.is_file())
        except OSError:
            return []


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - the three values of one moment
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
