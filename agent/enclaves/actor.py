"""The one task that owns something: orders wait in its queue and are done one after the other.

Invariant: no two orders, and no order and a look, ever run at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class _Order:
    """Something to be done, and who waits for it. `undo` is done if the waiter leaves."""

    work: Work
    done: asyncio.Future[Any]
    undo: Work | None = None


class Actor:
    """Does orders. `look` is called, between orders, after every `nudge`."""

    def __init__(self, name: str, look: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._look = look
        self._inbox: asyncio.Queue[_Order | None] = asyncio.Queue()  # None: look
        self._busy = False
        self._task = asyncio.create_task(self._own(), name=name)

    @property
    def free(self) -> bool:
        """Whether nothing is done or waits to be done."""
        return self._inbox.empty() and not self._busy

    def nudge(self) -> None:
        """Have a look taken soon."""
        self._inbox.put_nowait(None)

    async def ask(self, work: Work, *, undo: Work | None = None) -> Any:
        """Have it done; returns and raises what it does.

        If the caller is cancelled: with `undo`, the work is cancelled and then undone, before
        anything that is asked for later; without, it goes on.
        """
        done = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait(_Order(work, done, undo))
        return await done

    async def close(self) -> None:
        """Stop owning. What is being done is cancelled and not undone; who waits is cancelled."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        while not self._inbox.empty():
            order = self._inbox.get_nowait()
            if order is not None:
                order.done.cancel()

    async def _own(self) -> None:
        while True:
            order = await self._inbox.get()
            self._busy = True
            try:
                if order is None:
                    await self._look()
                elif order.undo is None or not order.done.cancelled():
                    await self._serve(order)
            except Exception:  # a defect in a look or an undo must not leave what is owned alone
                log.exception("owner's task", extra={"owner": self._name})
            finally:
                self._busy = False

    async def _serve(self, order: _Order) -> None:
        task = asyncio.create_task(order.work())
        if order.undo is not None:
            order.done.add_done_callback(lambda done: done.cancelled() and task.cancel())
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            order.done.cancel()
            raise
        error = None if task.cancelled() else task.exception()
        if order.done.done():
            if order.undo is not None:
                await order.undo()
        elif task.cancelled():
            order.done.cancel()
        elif error is not None:
            order.done.set_exception(error)
        else:
            order.done.set_result(task.result())
