"""Turns of those who ask for more before they were answered: a few a round of the event loop.

Whoever has sent many requests at once has one of them served when it has its turn, first come,
first served. Whoever asks for the first time, or waited for its answer, waits for no turn: so what
a flood of pipelined requests costs in a round is bounded, and others are served between.
"""

from __future__ import annotations

import asyncio
from collections import deque

_A_ROUND = 2


class Turns:
    """Of one listener."""

    def __init__(self, a_round: int = _A_ROUND) -> None:
        self._a_round = a_round
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._granting = False

    def next(self) -> asyncio.Future[None]:
        """Done when it is one's turn. Who ends it earlier takes none."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._granting:
            self._granting = True
            loop.call_soon(self._grant, loop)
        return turn

    def _grant(self, loop: asyncio.AbstractEventLoop) -> None:
        granted = 0
        while self._waiting and granted < self._a_round:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                granted += 1
        self._granting = bool(self._waiting)
        if self._granting:
            loop.call_soon(self._grant, loop)
