"""Resets what is open to an endpoint: its clients are made to speak, and refused by the filter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from agent.errors import describe
from agent.host.threads import finish_in_thread
from agent.model.enclave import Endpoint
from agent.traffic import conntrack, resetting
from agent.traffic.nftables_kernel import NftablesKernel, RefusedTransactionError
from agent.traffic.nftables_rules import endpoint_key
from agent.traffic.port import TrafficError

log = logging.getLogger(__name__)

_ROUNDS = 20
_ROUND_S = 0.1


class Resets:
    """One at a time. `endpoint`: being reset now; whoever makes the table anew keeps it there."""

    def __init__(
        self,
        table: str,
        kernel: NftablesKernel,
        table_turn: asyncio.Lock,
        connections: conntrack.KernelConnections,
    ) -> None:
        """`table_turn` is had by whoever makes the table anew: else he could put an endpoint there
        once more whose reset is over, and its connections would be refused for good.
        """
        self._table = table
        self._kernel = kernel
        self._table_turn = table_turn
        self._connections = connections
        self._lock = asyncio.Lock()
        self._endpoint: Endpoint | None = None
        self._cut: dict[Endpoint, frozenset[conntrack.Tuple]] = {}  # by resets that broke off

    def begin_anew(self, endpoints: Iterable[Endpoint]) -> None:
        """Traffic is sent there: what a reset that broke off has cut is nobody's any more."""
        for endpoint in endpoints:
            self._cut.pop(endpoint, None)

    async def reset(self, endpoint: Endpoint) -> int:
        """See `NftablesTraffic.reset`."""
        async with self._lock:
            flows = await self._connections.flows_to(endpoint)
            lost = {flow.original for flow in flows if not flow.closed_by_guest}
            cut = self._cut.get(endpoint, frozenset()) | lost
            if flows:
                self._cut[endpoint] = cut
                await self._cut_all(endpoint, flows)
            else:
                await self._connections.forget(endpoint, ())
            self._cut.pop(endpoint, None)
            return len(cut)

    async def _begin(self) -> None:
        try:
            async with self._table_turn:
                await self._kernel.commit(self.statement("add"))
        except RefusedTransactionError as error:  # whoever makes the table anew adds it
            log.warning("our table was not there for a reset", extra={"error": describe(error)})

    async def _end(self, statement: str) -> None:
        async with self._table_turn:
            try:
                await self._kernel.commit(statement)
            except RefusedTransactionError:  # another took the table, and the endpoint with it
                if (await self._kernel.look()).resetting:
                    raise

    def statement(self, verb: str = "add") -> str:
        """What adds or deletes the endpoint that is being reset; nothing if none is."""
        if self._endpoint is None:
            return ""
        key = endpoint_key(self._endpoint)
        return f"{verb} element inet {self._table} resetting {{ {key} }}\n"

    async def _cut_all(self, endpoint: Endpoint, flows: list[conntrack.Flow]) -> None:
        self._endpoint = endpoint
        try:
            await self._begin()
            left = await self._until_closed(endpoint, flows)
            await self._connections.forget(endpoint, left)
        finally:
            done, self._endpoint = self.statement("delete"), None
            await asyncio.shield(self._end(done))

    async def _until_closed(
        self, endpoint: Endpoint, flows: list[conntrack.Flow]
    ) -> list[conntrack.Flow]:
        """Returns those left. A flow whose reset went out is closed in the kernel's table."""
        for _ in range(_ROUNDS):
            try:
                await finish_in_thread(resetting.provoke, flows)
            except OSError as error:
                raise TrafficError("idle clients could not be made to speak") from error
            flows = await self._connections.flows_to(endpoint)
            if not flows:
                break
            await asyncio.sleep(_ROUND_S)
        return flows
