"""Writing large files without writing their zeros: a disk image is mostly holes, and stays so."""

from __future__ import annotations

import os
from pathlib import Path

BLOCK = 64 << 10  # what has only zeros is left out in blocks of this size
_ZEROS = bytes(BLOCK)


def write_sparse(descriptor: int, data: bytes, offset: int) -> None:
    """Have these bytes at that offset of a file that has nothing there yet. Raises OSError.

    Blocks of zeros are not written: reading them gives zeros all the same. The file is at least as
    long as what was given.
    """
    view, end = memoryview(data), offset + len(data)
    at = 0
    while at < len(view):
        size = BLOCK - (offset + at) % BLOCK
        block = view[at : at + size]
        if block != _ZEROS[: len(block)]:
            _write_all(descriptor, block, offset + at)
        at += len(block)
    if os.fstat(descriptor).st_size < end:
        os.ftruncate(descriptor, end)


def copy_sparse(source: Path, target: Path) -> None:
    """A new file with the bytes of another one, and no more of the disk than they need."""
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        offset = 0
        while chunk := os.pread(reading.fileno(), 1 << 20, offset):
            write_sparse(writing.fileno(), chunk, offset)
            offset += len(chunk)


def _write_all(descriptor: int, rest: memoryview, offset: int) -> None:
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
