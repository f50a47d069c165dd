"""Knocking at a guest that may not be up yet, until it answers.

Before the guest is up a connection may hang (its address is not resolved yet; QEMU's user-mode
network accepted on its behalf and waits) although a later one would be answered at once. So knocks
overlap, and the first that is answered becomes the first round.

A guest that is up sees each of ours that is given up as a handshake that was aborted, and few
things look more like an attack. So a knock is given several times as long as any guest takes that
answers at all, no more than a handful are under way, and those are all that is given up when one
is answered: at most four a boot. A slow host has slow boots and slow handshakes: both times grow
with the time that has passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from agent.probes.round import ConnectAttempt, RoundResult

_AT_ONCE = 5
_SPACING_S = 0.4  # between two knocks while one is under way
_SHARE = 0.05  # of the time that has passed, if that is more

BeginRound = Callable[[ConnectAttempt], Coroutine[Any, Any, RoundResult]]


class HedgedConnect:
    """One series of knocks. `pause_s` is asked before each wait; `silent` told of each failure."""

    def __init__(
        self,
        begin_round: BeginRound,
        *,
        patience_s: float,
        pause_s: Callable[[], float],
        silent: Callable[[RoundResult], None],
    ) -> None:
        self._begin_round = begin_round
        self._patience_s = patience_s
        self._pause_s = pause_s
        self._silent = silent
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._answered: asyncio.Future[asyncio.Task[RoundResult]] = self._loop.create_future()
        self._under_way: set[asyncio.Task[RoundResult]] = set()

    async def run(self) -> RoundResult:
        """The round of the first knock that was answered; all others are closed by then."""
        try:
            while not self._answered.done():
                if len(self._under_way) < _AT_ONCE:
                    self._begin()
                await self._pass_time()
            winner = self._answered.result()
            self._under_way.remove(winner)
        finally:
            await self._end_all()
        return await winner

    @property
    def _spacing_s(self) -> float:
        passed_s = self._loop.time() - self._began_s
        return min(max(_SPACING_S, _SHARE * passed_s), self._patience_s / _AT_ONCE)

    def _begin(self) -> None:
        """With so much time that the next four are begun within it."""
        reach_s = _AT_ONCE * self._spacing_s
        self._under_way.add(asyncio.create_task(self._attempt(reach_s)))

    async def _attempt(self, reach_s: float) -> RoundResult:
        me = asyncio.current_task()

        def reached() -> None:
            if me is not None and not self._answered.done():
                self._answered.set_result(me)

        return await self._begin_round(ConnectAttempt(reach_s=reach_s, reached=reached))

    async def _pass_time(self) -> None:
        """Until it is time for the next knock, or one was answered.

        Soon after all have ended: a guest that refuses at once is seen to come up at once.
        """
        now_s = self._loop.time()
        alone_s = now_s + self._pause_s()
        beside_s = max(alone_s, now_s + self._spacing_s)
        while not self._answered.done():
            left_s = (beside_s if self._under_way else alone_s) - self._loop.time()
            if left_s <= 0:
                return
            news: set[asyncio.Future[Any]] = {self._answered, *self._under_way}
            await asyncio.wait(news, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in [attempt for attempt in self._under_way if attempt.done()]:
                if not self._answered.done():
                    self._under_way.remove(attempt)
                    self._silent(attempt.result())

    async def _end_all(self) -> None:
        for attempt in self._under_way:
            attempt.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
