"""A kernel's log to read: a pipe on which, as in /dev/kmsg, each write is a record."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Callable[[bytes], int]]:
    """Write records to the pipe at `path`, which somebody reads."""
    fd = os.open(path, os.O_WRONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        yield lambda record: os.write(fd, record)
    finally:
        os.close(fd)
