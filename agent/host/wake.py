"""A change that many may notify and many may wait for, without ever missing one."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

K = TypeVar("K")


class Wake:
    """Counts notifications. A waiter passes the count that it has seen, so that none is lost."""

    def __init__(self) -> None:
        self._count = 0
        self._event = asyncio.Event()

    @property
    def count(self) -> int:
        return self._count

    def notify(self) -> None:
        """Wake every waiter."""
        self._count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def beyond(self, seen: int, timeout_s: float | None = None) -> int:
        """Wait until the count is above `seen` or the time is up; returns the count."""
        if self._count > seen:
            return self._count
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        return self._count


class KeyedWake(Wake, Generic[K]):
    """A wake that also says of what it was rung. Any number may wait, one reader takes."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: set[K] = set()

    def tell(self, *keys: K) -> None:
        """Ring, of these."""
        self._keys.update(keys)
        self.notify()

    def take(self) -> frozenset[K]:
        """Of what it was rung since this was last asked."""
        keys, self._keys = frozenset(self._keys), set()
        return keys
