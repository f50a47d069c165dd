"""A thread of its own for one SQLite connection, so that the event loop waits for no disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agent.store.port import StoreError

T = TypeVar("T")


class Lane:
    """One connection and the one thread that uses it."""

    def __init__(self, name: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connect = connect
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the thread.

        A cancelled caller leaves only when the work is over or was taken back before it began.
        """
        try:
            job = self._thread.submit(lambda: work(self._connected()))
        except RuntimeError as error:
            raise StoreError("the store is closed") from error
        waiter = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            if not job.cancel():
                await _over(waiter)
            raise

    async def close(self) -> None:
        """Finish what was begun, then close. Idempotent."""
        try:
            job = self._thread.submit(self.drop)
        except RuntimeError:
            return
        self._thread.shutdown(wait=False)
        await _over(asyncio.wrap_future(job))

    def drop(self) -> None:
        """Close the connection; the next work opens another. Only on the thread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection


async def _over(waiter: asyncio.Future[T]) -> None:
    """Wait until it is done, whatever it ends with; a cancellation is felt only then."""
    cancelled: asyncio.CancelledError | None = None
    while not waiter.done():
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError as error:
            cancelled = error
    if not waiter.cancelled():
        waiter.exception()
    if cancelled is not None:
        raise cancelled
