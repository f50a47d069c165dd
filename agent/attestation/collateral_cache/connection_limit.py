"""One connection of a guest's: one question, asked soon, and not too many of them at a time.

Whoever opens connections and says nothing holds few of them, and those for a moment: the files
that the agent may have open are needed elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

MAX_CONNECTIONS = 256
MAX_PER_ADDRESS = 48
HEAD_S = 10.0


class ConnectionLimit:
    """Counts who is inside. One too many is turned away without a word."""

    def __init__(
        self,
        *,
        most: int = MAX_CONNECTIONS,
        per_address: int = MAX_PER_ADDRESS,
        head_s: float = HEAD_S,
    ) -> None:
        self.head_s = head_s
        self._most = most
        self._per_address = per_address
        self._inside: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether there is room; it is taken then, until `leave`."""
        if self._inside[address] >= self._per_address or self._inside.total() >= self._most:
            return False
        self._inside[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Give the room back."""
        self._inside[address] -= 1
        if not self._inside[address]:
            del self._inside[address]


class LimitedRequestHandler(web.RequestHandler):
    """Ends by itself unless its question is `heard` in time. Its answer must be its last."""

    def __init__(self, server: web.Server, *, limit: ConnectionLimit, **more: Any) -> None:
        super().__init__(server, **more)
        self._limit = limit
        self._address: str | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        if not self._limit.enter(address):
            self._end()
            return
        self._address = address
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(self._limit.head_s, self._end)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.heard()
        if self._address is not None:
            self._limit.leave(self._address)
        super().connection_lost(exc)

    def heard(self) -> None:
        """The head of its question is here; the rest has bounds of its own."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.abort()
