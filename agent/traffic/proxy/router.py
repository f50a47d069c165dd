"""Which listener sends to which endpoint, and every connection between them.

Invariant: an order is in force as a whole or not at all. Sockets are bound and the order is on
disk before the first target changes; then all of them change within one turn of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.config_limits import DEFAULT_LIMITS, LimitsConfig
from agent.host.files import FileAbsentError, StorageError, read_bounded, write_atomic
from agent.host.threads import finish_in_thread
from agent.model.enclave import Endpoint
from agent.model.resources import Listen
from agent.traffic.limits import limits_within
from agent.traffic.port import (
    Binding,
    PortTakenError,
    RouteOrder,
    StaleGenerationError,
    TrafficError,
)
from agent.traffic.proxy.dialling import Dialler
from agent.traffic.proxy.listener import ProxyListener
from agent.traffic.proxy.relay import Relay, reset_on_close
from agent.traffic.proxy.shares import Share, Shares

_MAX_STATE_BYTES = 4 << 20
_LOOKS_FOR_IDLE = 60  # in the time after which a connection is idle
_log = logging.getLogger(__name__)


class Router:
    """All of the proxy's routes and connections; `capacity`: how many of these it can have."""

    def __init__(self, state_file: Path, capacity: int) -> None:
        self._state_file = state_file
        self._capacity = capacity
        self._shares = Shares(limits_within(DEFAULT_LIMITS, capacity))
        self._limited = asyncio.Event()  # other limits are in force
        self._lock = asyncio.Lock()
        self._orders: dict[str, RouteOrder] = {}
        self._listeners: dict[Listen, ProxyListener] = {}
        self._relays: dict[Endpoint, dict[Relay, asyncio.Task[None]]] = {}
        self._dialler = Dialler()

    @property
    def orders(self) -> tuple[RouteOrder, ...]:
        return tuple(self._orders.values())

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        return self._shares.refused

    def limit(self, limits: LimitsConfig) -> None:
        """What each tenant may have from now on."""
        self._shares.limits = limits_within(limits, self._capacity)
        self._limited.set()

    async def end_idle(self) -> None:
        """End connections over which nothing was said for too long, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._limited.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._shares.limits.idle_s / _LOOKS_FOR_IDLE):
                    await self._limited.wait()
            before = loop.time() - self._shares.limits.idle_s
            for relay in [one for relays in self._relays.values() for one in relays]:
                if relay.heard_at < before:
                    relay.abort()

    async def resume(self) -> None:
        """Serve what was in force when an earlier proxy ended.

        An order whose listener was taken meanwhile is left out: the agent sees that and complains.
        """
        try:
            data = read_bounded(self._state_file, _MAX_STATE_BYTES)
            recorded = msgspec.json.decode(data, type=tuple[RouteOrder, ...])
        except FileAbsentError:
            return
        except (StorageError, msgspec.MsgspecError) as error:
            _log.warning("routes cannot be read file=%s error=%s", self._state_file, error)
            return
        for order in recorded:
            try:
                self._switch(order, self._open(order))
            except TrafficError as error:
                _log.warning("route not resumed deployment=%s error=%s", order.deployment, error)

    async def apply(self, order: RouteOrder) -> None:
        """Raises TrafficError, having changed nothing."""
        async with self._lock:
            before = self._orders.get(order.deployment)
            if before is not None and before.generation > order.generation:
                raise StaleGenerationError(
                    f"generation {order.generation} of {order.deployment} is older than "
                    f"{before.generation}, which is in force"
                )
            if before == order:
                return
            fresh = self._open(order)
            try:
                await self._save({**self._orders, order.deployment: order})
            except BaseException:
                self._undo(order, fresh)
                raise
            self._switch(order, fresh)

    async def remove(self, deployment: str) -> None:
        async with self._lock:
            if deployment not in self._orders:
                return
            rest = {name: order for name, order in self._orders.items() if name != deployment}
            await self._save(rest)
            for listen in _listens(self._orders.pop(deployment)):
                self._listeners.pop(listen).close()

    def connections(self, endpoint: Endpoint) -> int:
        return len(self._relays.get(endpoint, ()))

    def reset(self, endpoint: Endpoint) -> int:
        """End every connection, in order where nothing is under way; how many were reset."""
        return sum([relay.end() for relay in list(self._relays.get(endpoint, ()))])

    def close(self) -> None:
        """Free every port, reset every connection."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        for relay in [one for relays in self._relays.values() for one in relays]:
            relay.abort()

    def forget(self) -> None:
        """Nothing is to be resumed."""
        self._state_file.unlink(missing_ok=True)

    def _open(self, order: RouteOrder) -> dict[Listen, ProxyListener]:
        """Bind the order's new listeners and let the kernel take connections for it."""
        wanted = [binding.listen for binding in order.bindings]
        for listen in wanted:
            if wanted.count(listen) > 1:
                raise TrafficError(f"{listen} is named twice in the order of {order.deployment}")
        for other in self._orders.values():
            for held in _listens(other) if other.deployment != order.deployment else ():
                if taken := [listen for listen in wanted if listen.overlaps(held)]:
                    raise TrafficError(f"{taken[0]} is taken by {other.deployment} on {held}")
        fresh: dict[Listen, ProxyListener] = {}
        for binding in order.bindings:
            try:
                self._ready(order.deployment, binding, fresh)
            except OSError as error:
                self._undo(order, fresh)
                reason = os.strerror(error.errno) if error.errno else str(error)
                said = f"{binding.listen} cannot be listened on: {reason}"
                if error.errno == errno.EADDRINUSE:
                    raise PortTakenError(said, binding.listen) from error
                raise TrafficError(said) from error
        return fresh

    def _ready(
        self, deployment: str, binding: Binding, fresh: dict[Listen, ProxyListener]
    ) -> None:
        listener = self._listeners.get(binding.listen)
        if listener is None:
            accepted = functools.partial(self._accepted, deployment)
            listener = fresh[binding.listen] = ProxyListener(binding.listen, accepted)
        if binding.endpoints:
            listener.prepare()

    def _undo(self, order: RouteOrder, fresh: Mapping[Listen, ProxyListener]) -> None:
        for listener in fresh.values():
            listener.close()
        for listen in _listens(order):
            if listen in self._listeners:
                self._listeners[listen].unprepare()

    def _switch(self, order: RouteOrder, fresh: Mapping[Listen, ProxyListener]) -> None:
        """Everything at once; nothing here can fail."""
        before = self._orders.get(order.deployment)
        self._listeners.update(fresh)
        self._orders[order.deployment] = order
        for binding in order.bindings:
            self._listeners[binding.listen].serve(binding.endpoints)
        for listen in _listens(before) if before else ():
            if listen not in _listens(order):
                self._listeners.pop(listen).close()

    async def _save(self, orders: Mapping[str, RouteOrder]) -> None:
        data = msgspec.json.encode(tuple(orders.values()))
        try:
            await finish_in_thread(write_atomic, self._state_file, data)
        except StorageError as error:
            raise TrafficError("the routes cannot be made durable") from error

    def _accepted(
        self, deployment: str, client: socket.socket, endpoint: Endpoint, source: str
    ) -> None:
        share = Share(deployment, source)
        if not self._shares.take(share):
            reset_on_close(client)
            client.close()
            return
        relay = Relay(client, endpoint, functools.partial(self._ended, share))
        task = asyncio.get_running_loop().create_task(self._carry(relay))
        self._relays.setdefault(endpoint, {})[relay] = task

    async def _carry(self, relay: Relay) -> None:
        """Reach the endpoint and begin, or reset the client."""
        try:
            await relay.join(await self._dialler.dial(relay.endpoint))
        except (OSError, TimeoutError) as error:
            _log.debug("endpoint not reached endpoint=%s error=%s", relay.endpoint, error)
            relay.abort()

    def _ended(self, share: Share, relay: Relay) -> None:
        self._shares.give_back(share)
        relays = self._relays[relay.endpoint]
        relays.pop(relay).cancel()
        if not relays:
            del self._relays[relay.endpoint]


def _listens(order: RouteOrder) -> tuple[Listen, ...]:
    return tuple(binding.listen for binding in order.bindings)
