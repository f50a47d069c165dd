"""What connections make the agent keep in memory, together bounded. Pure.

Heads that do not end, bodies on their way, answers that nobody takes: each is bounded by itself,
and many of them are bounded here. Past the limit, the connection that holds most, of the peer
that holds most, must go, until it is enough; so whoever holds little is not disturbed by whoever
holds much.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """Bytes by member, and by peer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sizes: dict[str, dict[T, int]] = {}
        self._totals: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Of all, in bytes."""
        return sum(self._totals.values())

    def hold(self, peer: str, member: T, size: int) -> list[T]:
        """It holds so many bytes now; returns who must go for it: they hold nothing any more."""
        out: list[T] = []
        if self._set(peer, member, size) > 0:
            while self.total > self._limit:
                most = max(self._totals, key=self._totals.__getitem__)
                largest = max(self._sizes[most], key=self._sizes[most].__getitem__)
                self._set(most, largest, 0)
                out.append(largest)
        return out

    def _set(self, peer: str, member: T, size: int) -> int:
        """By how much it is more than before."""
        own = self._sizes.setdefault(peer, {})
        change = size - own.pop(member, 0)
        if size:
            own[member] = size
        self._totals[peer] = self._totals.get(peer, 0) + change
        if not own:
            del self._sizes[peer], self._totals[peer]
        return change
