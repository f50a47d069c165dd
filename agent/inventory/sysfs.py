"""Attributes of the kernel's trees, read tolerantly: what cannot be read is None, never zero.

A device may go away between two reads, an attribute may be missing on this kernel, and a device
that fell off the bus answers nonsense. None of that is an error of the reader.
"""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 16 << 10  # no attribute that is read here is longer


def read_bytes(path: str | Path, size: int = _LONGEST) -> bytes | None:
    """The first bytes of a file, in one read: an attribute is made anew at every read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, size)
    except OSError:
        return None
    finally:
        os.close(fd)


def read_text(path: str | Path) -> str | None:
    """The text, without blanks around it; None also for an empty one."""
    data = read_bytes(path)
    return (data.decode("ascii", "replace").strip() or None) if data else None


def read_int(path: str | Path) -> int | None:
    """A number, decimal or with 0x; None for anything else."""
    text = read_text(path)
    if text is None:
        return None
    try:
        return int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        return None


def read_link_name(path: str | Path) -> str | None:
    """The last component of what a symbolic link points to."""
    try:
        return os.path.basename(os.readlink(path))  # noqa: PTH115, PTH119 - a Path costs ten reads
    except OSError:
        return None


def list_names(path: str | Path) -> tuple[str, ...]:
    """Names in a directory, sorted; none where it cannot be read."""
    try:
        return tuple(sorted(os.listdir(path)))  # noqa: PTH208 - as above
    except OSError:
        return ()


def reads_yes(path: str | Path) -> bool | None:
    """A module's switch: `Y` or `1`; None where there is no such switch."""
    text = read_text(path)
    return None if text is None else text in {"Y", "1"}
