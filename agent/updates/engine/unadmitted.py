"""Requests that wait for their release: nothing is admitted yet, so that they can be dropped.

Whoever asked may have gone, or somebody calls off what the deployment is about to do. Once a
request is admitted it is carried out, whoever waits for its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from agent.model.ids import DeploymentName
from agent.updates.errors import AbandonedError, ConflictError
from agent.updates.orders import Caller

T = TypeVar("T")


class Unadmitted:
    """Those of all deployments that are waiting now."""

    def __init__(self) -> None:
        self._waiting: dict[DeploymentName, set[asyncio.Future[None]]] = {}

    def call_off(self, name: DeploymentName) -> int:
        """Drop what waits for this deployment; returns how many requests that were."""
        dropped = self._waiting.pop(name, set())
        for one in dropped:
            if not one.done():
                one.set_result(None)
        return len(dropped)

    async def wait(self, name: DeploymentName, caller: Caller, found: Coroutine[Any, Any, T]) -> T:
        """What is found. Raises AbandonedError, ConflictError `cancelled`, and what it raises."""
        called_off = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, set()).add(called_off)
        finding = asyncio.create_task(found)
        gone = None if caller.gone is None else asyncio.create_task(caller.gone.wait())
        ends: set[asyncio.Future[Any]] = {finding, called_off, *([gone] if gone else [])}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if called_off.done():
                raise ConflictError(
                    "cancelled", "called off before it was admitted: nothing was changed"
                )
            check_there(caller)
            return await finding
        finally:
            self._forget(name, called_off)
            await _end(finding)
            if gone is not None:
                await _end(gone)

    def _forget(self, name: DeploymentName, called_off: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(name, set())
        waiting.discard(called_off)
        if not waiting:
            self._waiting.pop(name, None)


def check_there(caller: Caller) -> None:
    """Raises AbandonedError where nobody waits for the answer any more."""
    if caller.gone is not None and caller.gone.is_set():
        raise AbandonedError


async def _end(task: asyncio.Task[Any]) -> None:
    """What it raised was told, or concerns nobody any more."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
