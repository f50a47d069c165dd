"""Blocking work off the event loop, in such a way that a cancellation loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def finish_in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do short blocking work in a thread and return its result.

    When this returns or raises, the thread is done: a cancellation is raised only after it, so
    that no file is closed, and no lock let go, under the hands of the work.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, lambda: work(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait((future,))
            except asyncio.CancelledError:
                continue  # the first one is raised below
        if not future.cancelled():
            future.exception()  # seen: nobody is left to be told
        raise
