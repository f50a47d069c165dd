"""Who has to leave when too many are there. Pure.

A newcomer always gets in; the oldest of whoever has the most there leaves for it. So a flood from
one peer pushes out itself, and an honest one from elsewhere waits no longer for it. Who is being
served leaves only if all of that peer's are.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class EvictingQueue(Generic[T]):
    """At most `limit` members, at most `per_peer` of one peer."""

    def __init__(self, limit: int, per_peer: int) -> None:
        self._limit = limit
        self._per_peer = per_peer
        self._count = 0
        self._members: dict[str, dict[T, None]] = {}  # by peer, oldest first
        self._served: set[T] = set()

    def __len__(self) -> int:
        return self._count

    def enter(self, peer: str, member: T) -> T | None:
        """Put it in; returns the one that was put out for it, if any."""
        own = self._members.setdefault(peer, {})
        own[member] = None
        self._count += 1
        if len(own) > self._per_peer:
            return self._put_out(peer)
        if self._count > self._limit:
            return self._put_out(max(self._members, key=lambda one: len(self._members[one])))
        return None

    def serving(self, member: T, now: bool) -> None:
        """Whether it is being served from now on."""
        if now:
            self._served.add(member)
        else:
            self._served.discard(member)

    def leave(self, peer: str, member: T) -> None:
        """Nothing happens if it is not there."""
        own = self._members.get(peer, {})
        if member in own:
            del own[member]
            self._served.discard(member)
            self._count -= 1
            if not own:
                del self._members[peer]

    def _put_out(self, peer: str) -> T:
        own = self._members[peer]
        oldest = next((one for one in own if one not in self._served), next(iter(own)))
        self.leave(peer, oldest)
        return oldest
