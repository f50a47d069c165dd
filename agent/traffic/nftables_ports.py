"""The ports of what our table serves or refuses, held so that no other program listens there.

Where a program was quicker, what is served is served, since the table comes first; but a
deployment that serves nothing does not refuse in that program's place.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from agent.errors import describe
from agent.model.resources import Listen
from agent.traffic.holding import PortHolder
from agent.traffic.nftables_rules import yield_change
from agent.traffic.nftables_view import NftablesView
from agent.traffic.port import RouteOrder, TrafficError, Unheld

_log = logging.getLogger(__name__)
Commit = Callable[[str], Awaitable[None]]


class NftablesPorts:
    """One caller at a time. `commit` makes one transaction."""

    def __init__(self, table: str, holder: PortHolder, commit: Commit) -> None:
        self._table = table
        self._holder = holder
        self._commit = commit
        self._held: frozenset[Listen] = frozenset()

    async def keep(
        self, view: NftablesView, orders: Collection[RouteOrder]
    ) -> Mapping[Listen, Unheld]:
        """Hold what these want, and no others; returns what could not be. Raises TrafficError.

        `view` is what the kernel holds, which another program may just have taken away: the ports
        are no less ours then.
        """
        listens = _listens(orders)
        unheld = await self._holder.keep(listens) if listens else await self._end()
        self._held = listens - unheld.keys()
        if view.intact:  # where it is not, the sets are made anew with the next order
            serving = _listens(orders, serving=True)
            taken = {listen for listen, one in unheld.items() if one.program is not None}
            if text := yield_change(self._table, view.yielded, sorted(taken - serving)):
                await self._commit(text)
        return unheld

    async def keep_more(
        self, view: NftablesView, orders: Collection[RouteOrder], order: RouteOrder
    ) -> None:
        """The same, if this order has a port that is not held: a switch need not ask."""
        if not _listens([order]) <= self._held:
            await self.keep(view, orders)

    async def _end(self) -> Mapping[Listen, Unheld]:
        try:
            await self._holder.shutdown()
        except TrafficError as error:
            _log.warning("the ports' holder does not end error=%s", describe(error))
        return {}

    async def close(self) -> None:
        await self._holder.close()

    async def shutdown(self) -> None:
        """Hold nothing. Raises TrafficError."""
        await self._holder.shutdown()


def _listens(orders: Iterable[RouteOrder], *, serving: bool = False) -> frozenset[Listen]:
    return frozenset(
        binding.listen
        for order in orders
        for binding in order.bindings
        if binding.endpoints or not serving
    )
