"""A store whose commits fail when told, for whoever must live with that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from agent.store.port import Reader, Store, StoreError, Transaction

T = TypeVar("T")


class FailingStore:
    """Passes everything on to another store, but for the commits that were told to fail.

    `commits` counts the transactions that were tried. A failure before the commit runs the
    callback and keeps nothing, as a full disk does; one after it keeps everything and only the
    answer is lost, as in a crash between the two.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._failures: dict[int, tuple[StoreError, bool]] = {}
        self._broken: StoreError | None = None
        self.commits = 0

    def fail_commit(self, number: int, error: StoreError, *, after: bool = False) -> None:
        """Let the `number`th commit from now (1 is the next) fail with `error`."""
        self._failures[self.commits + number] = (error, after)

    def fail_all(self, error: StoreError | None) -> None:
        """Let every commit fail, until told None."""
        self._broken = error

    async def read(self, work: Callable[[Reader], T]) -> T:
        return await self._inner.read(work)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        self.commits += 1
        error, after = self._failures.pop(self.commits, (self._broken, False))
        if error is None:
            return await self._inner.transact(work)
        if after:
            await self._inner.transact(work)
            raise error

        def work_then_fail(transaction: Transaction) -> T:
            work(transaction)
            raise error

        return await self._inner.transact(work_then_fail)

    async def close(self) -> None:
        await self._inner.close()
