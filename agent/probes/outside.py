"""Asks every listener that is in force as its clients do, and says whether they reach it.

From a namespace outside the host's own stack where that can be had (`outside_link.py`), else from
this host itself; so are loopback addresses, whose clients are here, and IPv6.

At rest a round every ten seconds, at moments that all share; with more than a few listeners less
often, up to a minute, so that it costs the same. What fails is asked again as often as any probe,
and so are all others once one fails; what was just decided is asked at once, and all of them
soon after somebody changed the host's packet filters.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.config import ProbesConfig
from agent.errors import describe
from agent.host.clock import Clock
from agent.host.contact import client_context
from agent.host.wake import KeyedWake, Wake
from agent.model.addresses import HostAddresses
from agent.model.clock import until_beat
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.probes.outside_ask import ask_listener
from agent.probes.outside_link import OutsideLink, OutsideLinkError
from agent.probes.outside_verdict import Attempt, Reach, after
from agent.probes.port import OutsideListener, OutsideTarget, OutsideView

INTERVAL_S, LONGEST_S = 10.0, 60.0
_LISTENERS = 4  # that are asked in each interval, on the average
_STIRRED_EVERY_S = 5.0
_AT_ONCE = 16
_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 300.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Watched:
    """A deployment. `before`: what was reached of the enclave before. `due_s`: of the loop."""

    target: OutsideTarget
    reaches: dict[Listen, Reach]
    before: frozenset[Listen] = frozenset()
    due_s: float = 0.0

    @property
    def fails(self) -> bool:
        return any(one.failing for one in self.reaches.values())


class _Place:
    """The place outside, as far as it can be had: tried again, less and less often."""

    def __init__(self, link: OutsideLink | None) -> None:
        self._link = link
        self._not_before_s = 0.0
        self._pause_s = _AGAIN_S
        self._why_not: str | None = None

    @property
    def host_address(self) -> str:
        """The host's, as it is reached from there; to be asked while there are sockets."""
        assert self._link is not None
        return self._link.host_address

    async def sockets(self, number: int) -> list[socket.socket]:
        """None, where they cannot be had now."""
        now_s = asyncio.get_running_loop().time()
        if self._link is None or not number or now_s < self._not_before_s:
            return []
        try:
            await self._link.have()
            made = await self._link.sockets(number)
        except (OutsideLinkError, OSError) as error:
            self._not_before_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, _AGAIN_AT_MOST_S)
            if self._why_not != (why := describe(error)):
                _log.warning("listeners are asked from this host itself", extra={"why": why})
            self._why_not = why
            return []
        self._pause_s, self._why_not = _AGAIN_S, None
        return made

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


class OutsideProber:
    """Implements the port `Outside`. `link` None: there is no place outside to be had.

    `addresses`: the host's own, of the moment; may raise OSError. `relayed`: a process stands
    between clients and guests. `network_at_fault`: whether the host's network is known to be.
    `stirred`: rung when somebody changed what clients' packets pass.
    """

    def __init__(
        self,
        config: ProbesConfig,
        clock: Clock,
        link: OutsideLink | None,
        *,
        addresses: Callable[[], HostAddresses],
        relayed: bool,
        network_at_fault: Callable[[], bool] = lambda: False,
        stirred: Wake | None = None,
    ) -> None:
        self.changed = KeyedWake[DeploymentName]()
        self._config = config
        self._clock = clock
        self._place = _Place(link)
        self._addresses = addresses
        self._relayed = relayed
        self._network_at_fault = network_at_fault
        self._stirred = stirred or Wake()
        self._context = client_context()
        self._watched: dict[DeploymentName, _Watched] = {}
        self._wanted = Wake()

    def watch(self, name: DeploymentName, target: OutsideTarget) -> None:
        """Begin, or go on with, asking. Another decision starts afresh."""
        known = self._watched.get(name)
        if known is not None and known.target.generation == target.generation:
            known.target = target
            return
        before: frozenset[Listen] = frozenset()
        if known is not None and known.target.enclave != target.enclave:
            before = frozenset(at for at, reach in known.reaches.items() if reach.reached)
        reaches = {one.listen: Reach(one.listen) for one in target.listeners}
        self._watched[name] = _Watched(target, reaches, before)
        self._wanted.notify()

    def unwatch(self, name: DeploymentName) -> None:
        """Forget it. Idempotent."""
        self._watched.pop(name, None)

    def view(self, name: DeploymentName) -> OutsideView | None:
        """The newest; None if it is not asked."""
        watched = self._watched.get(name)
        if watched is None:
            return None
        others = (one for other, one in self._watched.items() if other != name)
        return OutsideView(
            generation=watched.target.generation,
            listeners=tuple(one.view for one in watched.reaches.values()),
            reached_before=watched.before,
            host_suspect=self._network_at_fault() or any(map(_is_unreached, others)),
        )

    async def run(self) -> None:
        """For ever. Nothing of the place outside is left when it ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hear())
                tasks.create_task(self._keep_asking())
        finally:
            self._place.close()

    async def _hear(self) -> None:
        seen = self._stirred.count
        while True:
            seen = await self._stirred.beyond(seen)
            self._hurry(self._watched.values())
            await asyncio.sleep(_STIRRED_EVERY_S)

    async def _keep_asking(self) -> None:
        while True:
            seen = self._wanted.count
            await self._round()
            await self._wanted.beyond(seen, self._pause_s())

    def _hurry(self, watched: Iterable[_Watched]) -> None:
        """Have them asked at once."""
        for one in watched:
            one.due_s = 0.0
        self._wanted.notify()

    def _pause_s(self) -> float | None:
        """Until somebody is due; without end while there is nobody."""
        now_s = asyncio.get_running_loop().time()
        dues = [one.due_s for one in self._watched.values()]
        return max(0.0, min(dues) - now_s) if dues else None

    async def _round(self) -> None:
        now_s = asyncio.get_running_loop().time()
        due = {name: one for name, one in self._watched.items() if one.due_s <= now_s}
        asked = [(name, one) for name, watched in due.items() for one in watched.target.listeners]
        if not asked:
            return
        failed_before = self._failing()
        answers = await self._ask_all([listener for _, listener in asked])
        for (name, listener), attempt in zip(asked, answers, strict=True):
            if self._watched.get(name) is due[name]:  # nothing else was decided meanwhile
                self._take(name, listener.listen, attempt)
        self._set_dues(due.values(), failed_before)

    def _set_dues(self, asked: Iterable[_Watched], failed_before: int) -> None:
        now_s = asyncio.get_running_loop().time()
        rest_s = until_beat(self._interval_s(), now_s)
        for watched in asked:
            pause_s = self._config.interval_s if watched.fails else rest_s
            watched.due_s = now_s + pause_s
        if self._failing() > failed_before:  # it may be the whole host
            self._hurry(one for one in self._watched.values() if not one.fails)

    def _interval_s(self) -> float:
        listeners = sum(len(one.reaches) for one in self._watched.values())
        return min(LONGEST_S, INTERVAL_S * max(1.0, listeners / _LISTENERS))

    def _failing(self) -> int:
        return sum(one.fails for one in self._watched.values())

    def _take(self, name: DeploymentName, listen: Listen, attempt: Attempt | None) -> None:
        watched = self._watched[name]
        before = watched.reaches[listen]
        found = after(before, attempt, self._clock.now(), self._config.failure_threshold)
        watched.reaches[listen] = found
        if _essence(found) == _essence(before):
            return
        if before.reached is not found.reached and (before.reached, found.reached) != (None, True):
            words = {"deployment": name, "listen": str(listen), "why": found.problem}
            _log.info(
                "clients get through" if found.reached else "clients are cut off", extra=words
            )
        self.changed.tell(name)

    async def _ask_all(self, listeners: list[OutsideListener]) -> list[Attempt | None]:
        here = self._local(listeners)
        outward = [one for one in listeners if one.listen in here and _has_outside(one.listen)]
        outside = await self._place.sockets(len(outward))
        slots = asyncio.Semaphore(_AT_ONCE)
        places = dict(zip(map(id, outward), outside, strict=False))

        async def ask(listener: OutsideListener) -> Attempt | None:
            if listener.listen not in here:
                return None
            sock = places.get(id(listener))
            async with slots:
                return await self._ask(listener, sock)

        try:
            return list(await asyncio.gather(*map(ask, listeners)))
        finally:
            for sock in outside:
                sock.close()

    async def _ask(self, listener: OutsideListener, outside: socket.socket | None) -> Attempt:
        to = self._where(listener.listen, by_outside=outside is not None)
        with contextlib.ExitStack() as stack:
            sock = outside or stack.enter_context(_socket_for(to))
            problem = await ask_listener(
                sock,
                to,
                listener,
                context=self._context,
                timeout_s=self._config.timeout_s,
                relayed=self._relayed,
            )
        return Attempt(problem=problem, by_outside=outside is not None)

    def _where(self, listen: Listen, *, by_outside: bool) -> Endpoint:
        """A wildcard is asked at an address of the host's that whoever asks can reach."""
        if not listen.is_wildcard:
            return Endpoint(address=listen.address, port=listen.port)
        if by_outside:
            return Endpoint(address=self._place.host_address, port=listen.port)
        return Endpoint(address="::1" if listen.is_ipv6 else "127.0.0.1", port=listen.port)

    def _local(self, listeners: Iterable[OutsideListener]) -> set[Listen]:
        """Those on addresses that are this host's now: others are reached somewhere else."""
        wanted = {one.listen for one in listeners}
        sure = {one for one in wanted if one.is_wildcard or _is_loopback(one)}
        if sure == wanted:
            return wanted
        try:
            addresses = self._addresses()
        except OSError:
            return wanted
        return {one for one in wanted if one in sure or addresses.has(one.address)}


def _essence(reach: Reach) -> tuple[object, ...]:
    """What a reader acts upon at once."""
    return (reach.reached, reach.by_outside, reach.view.doubtful)


def _is_unreached(watched: _Watched) -> bool:
    return any(one.reached is False for one in watched.reaches.values())


def _has_outside(listen: Listen) -> bool:
    """Whether it has clients elsewhere, whom the place outside can stand for."""
    return not listen.is_ipv6 and not _is_loopback(listen)


def _is_loopback(listen: Listen) -> bool:
    return ipaddress.ip_address(listen.address).is_loopback


def _socket_for(to: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in to.address else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
