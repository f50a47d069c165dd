"""Whether a file is the artifact that a key of the cache names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.host.files import storage_errors
from agent.releases.blocking import Check
from agent.releases.port import ReleaseError
from agent.releases.verity import VerityError, verify_disk

_CHUNK = 1 << 20


def check_file(path: Path, key: str, check: Check, *, sha256: str | None = None) -> None:
    """Compare all of a file with its key, in a thread; ReleaseError says how it differs.

    `sha256` is the file's, if it was computed already, while the file was written.
    """
    kind, _, expected = key.partition("-")
    with storage_errors("read", path):
        if kind == "verity":
            try:
                verify_disk(path, expected, check)
            except VerityError as error:
                raise ReleaseError(str(error)) from error
        elif (found := sha256 or file_sha256(path, check)) != expected:
            raise ReleaseError(f"its SHA-256 is {found}, the manifest says {expected}")


def file_sha256(path: Path, check: Check) -> str:
    """The SHA-256 of a file, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            check()
            digest.update(chunk)
    return digest.hexdigest()
