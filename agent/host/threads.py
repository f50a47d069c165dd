"""Blocking work off the event loop, in such a way that a cancellation loses nothing."""

from __future__ import annotations

import asyncio
import threading
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
    return await _finished(loop.run_in_executor(None, lambda: work(*args, **kwargs)))


async def finish_in_own_thread(work: Callable[[], T]) -> T:
    """The same in a thread that does nothing before it and nothing after it.

    For work that changes what the kernel keeps of each thread: its namespaces, say.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            loop.call_soon_threadsafe(future.set_exception, error)
        else:
            loop.call_soon_threadsafe(future.set_result, result)

    threading.Thread(target=body, name="own-thread", daemon=True).start()
    return await _finished(future)


async def _finished(future: asyncio.Future[T]) -> T:
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
