"""Which executable, so that what was found out about one is believed of no other."""

from __future__ import annotations

import shutil
from pathlib import Path

BinaryIdentity = tuple[str, int, int, int]


def binary_identity(binary: str) -> BinaryIdentity | None:
    """Path, inode, size and mtime of an executable; None if there is none."""
    found = shutil.which(binary)
    if found is None:
        return None
    status = Path(found).stat()
    return (found, status.st_ino, status.st_size, status.st_mtime_ns)
