"""Ways to damage a store's file, and where they show."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

_PAGE = 4096


def carry_log_over(file: Path) -> None:
    """Have everything in the file itself: what is in its log would hide the damage."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2 // _PAGE * _PAGE)


def flip_page(file: Path) -> None:
    """Every bit of the third page."""
    with file.open("r+b") as opened:
        page = os.pread(opened.fileno(), _PAGE, 2 * _PAGE)
        os.pwrite(opened.fileno(), bytes(byte ^ 0xFF for byte in page), 2 * _PAGE)


def zero_header(file: Path) -> None:
    with file.open("r+b") as opened:
        os.pwrite(opened.fileno(), bytes(100), 0)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut in half": cut_in_half,
    "a page flipped": flip_page,
    "header zeroed": zero_header,
}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
