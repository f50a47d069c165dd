"""The numbers of reports: growing for ever, also over restarts, without a write for each."""

from __future__ import annotations

from agent.store.port import REPORT_NUMBERS, Store, Transaction

_AT_ONCE = 4096


class Numbers:
    """Takes them from the store in blocks. What a crash leaves of a block is skipped."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0
        self._end = 0

    async def take(self) -> int:
        """One that nobody had before."""
        if self._next == self._end:
            self._next = await self._store.transact(_reserve)
            self._end = self._next + _AT_ONCE
        self._next += 1
        return self._next - 1


def _reserve(tx: Transaction) -> int:
    first = int(tx.meta(REPORT_NUMBERS) or 1)
    tx.set_meta(REPORT_NUMBERS, str(first + _AT_ONCE))
    return first
