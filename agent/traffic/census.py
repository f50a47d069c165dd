"""How many connections each endpoint has: one listing of the kernel's table answers all who ask.

The kernel walks its whole table for a listing, however little is asked for (13 ms where nothing
else runs), so that one listing an endpoint made an idle agent's largest cost.
Invariant: a count is from a listing that began after it was asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from agent.host.commands import RunCommand
from agent.model.enclave import Endpoint
from agent.traffic import conntrack

_Counts = Counter[tuple[str, int]]


class Census:
    """Counts by endpoint. Those who ask in the same moment share a listing."""

    def __init__(self, run_command: RunCommand) -> None:
        self._run = run_command
        self._next: asyncio.Task[_Counts] | None = None

    async def connections(self, endpoint: Endpoint) -> int:
        """Open flows that were translated to the endpoint. Raises TrafficError."""
        if self._next is None:
            self._next = asyncio.create_task(self._take(), name="flow-census")
            self._next.add_done_callback(_look_at)
        counts = await asyncio.shield(self._next)  # one asker's end is not the others'
        return counts[endpoint.address, endpoint.port]

    async def _take(self) -> _Counts:
        await asyncio.sleep(0)  # let all ask who are about to
        self._next = None
        flows = await conntrack.translated(self._run)
        return Counter(flow.endpoint for flow in flows)


def _look_at(done: asyncio.Task[_Counts]) -> None:
    """Whoever asked may be gone; the failure is theirs to tell, not the event loop's."""
    if not done.cancelled():
        done.exception()
