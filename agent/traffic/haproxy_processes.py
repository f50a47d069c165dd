"""The HAProxy processes of this agent: the one in force, and those that only finish.

Invariant: the newest process that was not retired is the one in force, whoever started it and
whether or not its starter lived to see it. All state is in the processes and their directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from agent.config_limits import LimitsConfig
from agent.errors import describe
from agent.host.commands import RunCommand
from agent.host.process import Process, identify
from agent.host.threads import finish_in_thread
from agent.model.resources import Listen
from agent.traffic.haproxy_config import check
from agent.traffic.haproxy_host import find_binary, place_in
from agent.traffic.haproxy_process import HaproxyProcess, processes_in
from agent.traffic.haproxy_record import Orders, Record
from agent.traffic.haproxy_runtime import RuntimeCommands
from agent.traffic.haproxy_taken import check_taken
from agent.traffic.haproxy_view import HaproxyView
from agent.traffic.holding import PortHolder
from agent.traffic.port import RouteOrder, TrafficError, Unheld

_log = logging.getLogger(__name__)


class HaproxyProcesses:
    """One caller at a time."""

    def __init__(
        self,
        directory: Path,
        record: Record,
        run: RunCommand,
        ask: RuntimeCommands,
        *,
        limits: LimitsConfig,
        holder: PortHolder,
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._record = record
        self._run = run
        self._ask = ask
        self._holder = holder
        self.unheld: Mapping[Listen, Unheld] = {}  # as it was looked at last
        self._current: HaproxyProcess | None = None
        self._retired: list[HaproxyProcess] = []
        self._changed = asyncio.Event()

    @property
    def current(self) -> HaproxyProcess:
        """The one in force; there is one after `look`."""
        if self._current is None:
            raise TrafficError("HAProxy does not run")
        return self._current

    @property
    def all(self) -> list[HaproxyProcess]:
        return [*filter(None, [self._current]), *self._retired]

    async def look(self) -> HaproxyView:
        """What is in force. A process that ended is replaced by one with what was recorded."""
        with self.recovering():
            if self._current is not None:
                try:
                    return await self._settled(self._current)
                except OSError:
                    _log.warning("haproxy ended number=%s", self._current.number)
            await self._adopt()
            if self._current is None:
                await self._resume()
            try:
                return await self._settled(self.current)
            except OSError as error:
                raise TrafficError("HAProxy does not answer") from error

    async def replace(self, orders: Orders) -> None:
        """Put another process in force, with these orders, and retire the one before.

        It takes over the sockets of the newest process that there is: one that is retired has
        those of a successor that died, too. Raises TrafficError, having changed nothing.
        """
        number = max(processes_in(self._directory), default=0) + 1
        process = self._process(number)
        recorded = await self._record.load()
        await self._record.save(orders)
        try:
            binary = find_binary() or "haproxy"
            heir_of = next(iter(self.all), None)
            await self._holder.keep(())  # it listens everywhere before it pauses anything
            await process.start(binary, list(orders.values()), self._run, inherit=heir_of)
        except TrafficError:
            await self._record.save(recorded)
            raise
        others = self.all
        self._take(process)
        _log.info("haproxy started number=%s", number)
        try:
            await self._retire(others)
            await self._settled(process)
        except OSError as error:
            raise TrafficError("HAProxy ended at once") from error

    async def _resume(self) -> None:
        """Begin with what was recorded, where no process is in force."""
        inherited: frozenset[str] = frozenset()
        for process in self._retired[:1]:
            with contextlib.suppress(OSError):
                inherited = frozenset((await process.statistics()).frontends)
        await self.replace(_servable(await self._record.load(), inherited))

    @contextlib.contextmanager
    def recovering(self) -> Iterator[None]:
        """After a failure or a cancellation in the middle, what runs is looked for anew."""
        try:
            yield
        except BaseException:
            self._current = None
            raise

    async def end(self) -> None:
        """Kill all of them, with all connections. Idempotent."""
        self._current = None
        self._retired.clear()
        for number in processes_in(self._directory):
            await self._process(number).kill()
        await finish_in_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def ended(self) -> None:
        """Returns when the process in force ended, which is not when another replaces it."""
        while True:
            self._changed.clear()
            if self._current is None:
                return
            try:
                identity = identify(await self._current.pid())
            except (OSError, TrafficError):
                return
            process = Process.open(identity) if identity else None
            if process is None or await self._outlived(process):
                return

    async def _outlived(self, process: Process) -> bool:
        """Wait for its end or for another in force, whichever is first: was it the end?"""
        waiting = [asyncio.create_task(process.wait()), asyncio.create_task(self._changed.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return not self._changed.is_set()
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            process.close()

    async def _settled(self, process: HaproxyProcess) -> HaproxyView:
        """With listeners in the states that follow from the routes. Raises OSError if it ended."""
        view = await process.view()
        if corrections := view.corrections():
            await self._holder.keep(view.paused() & view.to_pause())
            await process.order(corrections)
            view = await process.view()
        self.unheld = await self._holder.keep(view.paused() & view.to_pause())
        self._retired = [one for one in self._retired if not await one.end_if_idle()]
        return view

    async def _adopt(self) -> None:
        self._current, self._retired = None, []
        running: list[HaproxyProcess] = []
        for number in processes_in(self._directory):
            process = self._process(number)
            if await process.answers():
                running.append(process)
        if not running or running[0].is_retired:
            self._retired = running
            return
        current = running[0]
        self._take(current)
        _log.info("haproxy adopted number=%s", current.number)
        try:
            await self._retire(running[1:])
            view = await current.view()
        except OSError as error:
            raise TrafficError("HAProxy ended at once") from error
        if view.intact and view.known != await self._record.load():
            await self._record.save(view.known)

    async def _retire(self, others: list[HaproxyProcess]) -> None:
        """Have them stop listening, the newest first. Raises OSError if the current one ended."""
        self._retired = others
        if others:
            kept = frozenset((await self.current.statistics()).frontends)
            for process in others:
                with contextlib.suppress(OSError):
                    await process.retire(kept)

    def _process(self, number: int) -> HaproxyProcess:
        return HaproxyProcess(place_in(self._directory / str(number), self._limits), self._ask)

    def _take(self, process: HaproxyProcess) -> None:
        self._current = process
        self._changed.set()


def _servable(orders: Orders, inherited: Container[str]) -> Orders:
    """Less those whose listener was taken meanwhile: the agent sees that and complains."""
    found: dict[str, RouteOrder] = {}
    for name, order in orders.items():
        try:
            check(order)
            check_taken(found.values(), order, inherited)
        except TrafficError as error:
            _log.warning("route not resumed deployment=%s error=%s", name, describe(error))
        else:
            found[name] = order
    return {order.deployment: order for order in found.values()}
