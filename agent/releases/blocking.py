"""Blocking work (hashing, big files) off the event loop, which a cancellation ends and waits for.

When `run` returns or raises, the thread no longer touches anything: so a file that is being
written has one writer, also after a cancellation.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")

Check = Callable[[], None]


class AbandonedError(Exception):
    """Raised in the thread, by its own check, when nobody waits for the result any more."""


async def run(executor: Executor, work: Callable[[Check], T]) -> T:
    """Do `work(check)` in a thread; work calls `check` often, and lets what it raises through."""
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise AbandonedError

    def begin() -> T:
        check()
        return work(check)

    future = asyncio.get_running_loop().run_in_executor(executor, begin)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        await _ended(future)
        raise


async def _ended(future: asyncio.Future[T]) -> None:
    """Wait until the thread is out, however often we are cancelled meanwhile."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue  # our caller re-raises the first one
    if not future.cancelled():
        future.exception()  # seen: nobody is left to be told
