"""How the C library keeps memory that is free: given back, and in one arena.

By default glibc (mallopt(3)) has an arena for each of some threads and, once a large piece was
freed, takes pieces of that size from the heap: after a flood of bodies the process keeps what it
held at most, in pieces. Elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_TRIM_BYTES = 128 << 10
_MMAP_BYTES = 64 << 10


def give_memory_back() -> None:
    """Once, before there are threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
