"""One task for many waiters: who asks for what is under way already waits for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Singleflight:
    """Tasks by key. A task is cancelled when its last waiter is, and then waited for."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiters: dict[str, int] = {}

    def under_way(self) -> frozenset[str]:
        """The keys that somebody waits for."""
        return frozenset(self._waiters)

    async def run(self, key: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for the key's task, beginning it if there is none. Its error is each waiter's."""
        task = self._tasks.get(key)
        while task is not None and task.cancelling():
            # Its waiters all left; it is on its way out and must be gone before another begins.
            await asyncio.wait([task])
            task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(begin(), name=f"shared {key}")
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        self._waiters[key] = self._waiters.get(key, 0) + 1
        try:
            await asyncio.shield(task)
        finally:
            self._waiters[key] -= 1
            if not self._waiters[key]:
                del self._waiters[key]
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])

    def _forget(self, key: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # each waiter was given it
