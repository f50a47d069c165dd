"""Keeps the ports of deployments from other programs while no data plane listens there itself.

A process of its own does it, the userspace data plane's, with listeners that have no endpoints. It
outlives the agent, begins again by itself with what it had, and is there while there is a
deployment. Its sockets are bound and do not listen: the kernel answers for them as for a port that
nobody serves, and a packet filter that sends connections elsewhere is not disturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Protocol

from agent.errors import describe
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.port import Binding, PortTakenError, RouteOrder, TrafficError, Unheld
from agent.traffic.userspace import UserspaceTraffic

_log = logging.getLogger(__name__)


class PortHolder(Protocol):
    """Holds ports."""

    async def keep(self, listens: Collection[Listen]) -> Mapping[Listen, Unheld]:
        """Hold these and no others; returns those that cannot be had. Never raises."""
        ...

    async def close(self) -> None:
        """Let go of handles; what is held stays so."""
        ...

    async def shutdown(self) -> None:
        """Hold nothing any more, and leave nothing. Idempotent. Raises TrafficError."""
        ...


class NoHolder:
    """Holds nothing."""

    async def keep(self, listens: Collection[Listen]) -> Mapping[Listen, Unheld]:
        return {}

    async def close(self) -> None: ...

    async def shutdown(self) -> None: ...


class ProcessHolder:
    """`process` is one of the holder's own: each of its orders is one port.

    One that cannot be had is tried again after `again_s`: what asks must not wait each time.
    """

    def __init__(self, process: UserspaceTraffic, *, again_s: float = 10.0) -> None:
        self._process = process
        self._again_s = again_s
        self._failure: tuple[float, Unheld] | None = None  # when, and why
        self._lock = asyncio.Lock()
        self._started = False

    async def keep(self, listens: Collection[Listen]) -> Mapping[Listen, Unheld]:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._failure is not None and now < self._failure[0] + self._again_s:
                return dict.fromkeys(listens, self._failure[1])
            try:
                unheld = await self._keep(sorted(set(listens)))
            except TrafficError as error:
                _log.warning("ports cannot be held error=%s", describe(error))
                await self._drop()
                self._failure = (now, Unheld(describe(error)))
                return dict.fromkeys(listens, self._failure[1])
            self._failure = None
            return unheld

    async def _keep(self, wanted: list[Listen]) -> dict[Listen, Unheld]:
        if not self._started:
            if not wanted and not self._process.was_started:
                return {}
            await self._process.start()
            self._started = True
        orders = {_name(listen): _order(listen) for listen in wanted}
        held = await self._process.observe()
        for name in held.keys() - orders.keys():
            await self._process.remove(name)
        unheld = {}
        for listen in wanted:
            if _name(listen) not in held:
                try:
                    await self._process.apply(orders[_name(listen)])
                except PortTakenError as error:
                    unheld[listen] = Unheld(describe(error), error.program)
                except TrafficError as error:
                    unheld[listen] = Unheld(describe(error))
        return unheld

    async def close(self) -> None:
        await self._process.close()
        self._started = False

    async def shutdown(self) -> None:
        async with self._lock:
            self._started = False
            try:
                await self._process.shutdown()
            except TrafficError:
                await self._drop()

    async def _drop(self) -> None:
        """What hangs must keep no port from the data plane itself, nor take it again by itself."""
        self._started = False
        await self._process.kill()
        with contextlib.suppress(TrafficError):
            await self._process.shutdown()


def _name(listen: Listen) -> DeploymentName:
    return DeploymentName(str(listen))


def _order(listen: Listen) -> RouteOrder:
    return RouteOrder(deployment=_name(listen), generation=0, bindings=(Binding(listen=listen),))
