"""How many connections each endpoint has: one walk through the kernel's table answers all who ask.

The kernel walks its whole table, however little is asked for, so that one walk an endpoint made
an idle agent's largest cost. Who asks alone, as a drain does each second, is told of no other's.
Invariant: a count is from a listing that began after it was asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from agent.model.enclave import Endpoint
from agent.traffic.conntrack import KernelConnections

_Counts = Counter[tuple[str, int]]


class Census:
    """Counts by endpoint. Those who ask in the same moment share a listing."""

    def __init__(self, kernel: KernelConnections) -> None:
        self._kernel = kernel
        self._asked: set[Endpoint] = set()  # for the next one
        self._next: asyncio.Task[_Counts] | None = None

    async def connections(self, endpoint: Endpoint) -> int:
        """Open flows that were translated to the endpoint. Raises TrafficError."""
        self._asked.add(endpoint)
        if self._next is None:
            self._next = asyncio.create_task(self._take(), name="flow-census")
            self._next.add_done_callback(_look_at)
        counts = await asyncio.shield(self._next)  # one asker's end is not the others'
        return counts[endpoint.address, endpoint.port]

    async def _take(self) -> _Counts:
        await asyncio.sleep(0)  # let all ask who are about to
        self._next, asked, self._asked = None, self._asked, set()
        return await self._kernel.counts(next(iter(asked)) if len(asked) == 1 else None)


def _look_at(done: asyncio.Task[_Counts]) -> None:
    """Whoever asked may be gone; the failure is theirs to tell, not the event loop's."""
    if not done.cancelled():
        done.exception()
