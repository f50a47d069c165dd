"""Who has to leave when too many wait at the door. Pure.

A newcomer always gets in; the oldest of whoever has the most there leaves for it. So a flood from
one address pushes out itself, and an honest peer from another address waits no longer for it.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class EvictingQueue(Generic[T]):
    """At most `limit` members, at most `per_address` of one address."""

    def __init__(self, limit: int, per_address: int) -> None:
        self._limit = limit
        self._per_address = per_address
        self._count = 0
        self._members: dict[str, dict[T, None]] = {}  # by address, oldest first

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str, member: T) -> T | None:
        """Put it in; returns the one that was put out for it, if any."""
        own = self._members.setdefault(address, {})
        own[member] = None
        self._count += 1
        if len(own) > self._per_address:
            return self._put_out(address)
        if self._count > self._limit:
            return self._put_out(max(self._members, key=lambda one: len(self._members[one])))
        return None

    def leave(self, address: str, member: T) -> None:
        """Nothing happens if it is not there."""
        own = self._members.get(address, {})
        if member in own:
            del own[member]
            self._count -= 1
            if not own:
                del self._members[address]

    def _put_out(self, address: str) -> T:
        oldest = next(iter(self._members[address]))
        self.leave(address, oldest)
        return oldest
