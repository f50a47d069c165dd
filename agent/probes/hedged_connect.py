"""Knocking at a guest that may not be up yet, until it answers.

Before the guest is up a connection may hang (its address is not resolved yet; QEMU's user-mode
network accepted on its behalf and waits) although a later one would be answered at once. So knocks
overlap: a short one is begun every moment, beside a patient one for a guest that is merely slow,
and the first that is answered becomes the first round. Never more than a handful at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from agent.probes.round import ConnectAttempt, RoundResult

_SHORT_S = 0.4
_AT_ONCE = 5

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
        self._answered: asyncio.Future[asyncio.Task[RoundResult]] = (
            asyncio.get_running_loop().create_future()
        )
        self._under_way: dict[asyncio.Task[RoundResult], bool] = {}

    async def run(self) -> RoundResult:
        """The round of the first knock that was answered; all others are closed by then."""
        try:
            while not self._answered.done():
                if len(self._under_way) < _AT_ONCE:
                    self._begin()
                await self._pass_time()
            winner = self._answered.result()
            del self._under_way[winner]
        finally:
            await self._end_all()
        return await winner

    def _begin(self) -> None:
        patient = not any(self._under_way.values())
        reach_s = self._patience_s if patient else min(self._patience_s, _SHORT_S)
        self._under_way[asyncio.create_task(self._attempt(reach_s))] = patient

    async def _attempt(self, reach_s: float) -> RoundResult:
        me = asyncio.current_task()

        def reached() -> None:
            if me is not None and not self._answered.done():
                self._answered.set_result(me)

        return await self._begin_round(ConnectAttempt(reach_s=reach_s, reached=reached))

    async def _pass_time(self) -> None:
        """Until it is time for the next knock, or one was answered."""
        ends_s = asyncio.get_running_loop().time() + self._pause_s()
        while not self._answered.done():
            left_s = ends_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            news: set[asyncio.Future[Any]] = {self._answered, *self._under_way}
            await asyncio.wait(news, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in [attempt for attempt in self._under_way if attempt.done()]:
                if not self._answered.done():
                    del self._under_way[attempt]
                    self._silent(attempt.result())

    async def _end_all(self) -> None:
        for attempt in self._under_way:
            attempt.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
