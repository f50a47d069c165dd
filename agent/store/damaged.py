"""In place of a store that cannot be trusted: whoever reads or writes is told so."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from agent.store.port import Reader, StoreDamagedError, Transaction

T = TypeVar("T")


class DamagedStore:
    """Implements `agent.store.port.Store`; nothing of it touches the file."""

    def __init__(self, damage: StoreDamagedError) -> None:
        self.said = str(damage)

    async def read(self, work: Callable[[Reader], T]) -> T:
        raise StoreDamagedError(self.said)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        raise StoreDamagedError(self.said)

    async def close(self) -> None:
        """Nothing is open."""
