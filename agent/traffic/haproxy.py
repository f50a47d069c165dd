"""The HAProxy data plane: a process of its own, switched by one map change of its runtime API.

The process outlives the agent. What is in force is read back from it; a file says what to begin
with when there is none. A switch prepares servers and an edition beside the one in force, then
changes one map entry. Only another set of listeners needs another process, which takes over the
sockets of the one before it: no connection is refused or lost by that either. Clients' addresses
are not kept: guests see the host's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from agent.config_limits import DEFAULT_LIMITS, LimitsConfig
from agent.errors import describe
from agent.host.commands import RunCommand, run_command
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.haproxy_config import (
    BACKEND,
    MEMBERS,
    ROUTES,
    check,
    layout_of,
    members_of,
    route_value,
    server_name,
)
from agent.traffic.haproxy_host import check_directory
from agent.traffic.haproxy_process import HaproxyProcess
from agent.traffic.haproxy_processes import HaproxyProcesses
from agent.traffic.haproxy_record import Orders, Record
from agent.traffic.haproxy_runtime import RuntimeCommands, ask
from agent.traffic.haproxy_sessions import Disconnect, disconnect_here, sessions_of
from agent.traffic.haproxy_taken import check_taken
from agent.traffic.haproxy_view import HaproxyView
from agent.traffic.holding import NoHolder, PortHolder
from agent.traffic.port import (
    Refused,
    RouteOrder,
    StaleGenerationError,
    TrafficError,
    Unheld,
)

_RESTART_PAUSE_S = 1.0
_RESET_ROUNDS = 200
_RESET_ROUND_S = 0.01
_log = logging.getLogger(__name__)


class HaproxyTraffic:
    """`run_dir` is for the processes' directories, `state_file` for what is to be in force."""

    kind = "haproxy"

    def __init__(
        self,
        run_dir: Path,
        state_file: Path,
        *,
        holder: PortHolder | None = None,
        limits: LimitsConfig = DEFAULT_LIMITS,
        run_command: RunCommand = run_command,
        ask: RuntimeCommands = ask,
        disconnect: Disconnect = disconnect_here,
    ) -> None:
        self._run_dir = run_dir
        self._disconnect = disconnect
        self._record = Record(state_file)
        self._holder = holder or NoHolder()
        self._processes = HaproxyProcesses(
            run_dir, self._record, run_command, ask, limits=limits, holder=self._holder
        )
        self._lock = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Adopt the process that runs, or start one with what was recorded.

        One that was started with other limits is replaced: its connections stay with it.
        """
        check_directory(self._run_dir)
        async with self._lock:
            view = await self._processes.look()
            if view.intact and not self._processes.current.keeps_to_its_limits():
                with self._processes.recovering():
                    await self._processes.replace(view.known)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="haproxy-watch")

    async def apply(self, order: RouteOrder) -> None:
        check(order)
        async with self._lock:
            view = await self._processes.look()
            before = view.known.get(order.deployment)
            if before is not None and before.generation > order.generation:
                raise StaleGenerationError(
                    f"generation {order.generation} of {order.deployment} is older than "
                    f"{before.generation}, which is in force"
                )
            if view.intact and before == order:
                return
            base = await self._base(view)
            check_taken(base.values(), order)
            wanted = {**base, order.deployment: order}
            moved = layout_of(base.values()) != layout_of(wanted.values())
            with self._processes.recovering():
                if moved or not view.intact or before is None:
                    await self._processes.replace(wanted)
                else:
                    await self._switch(view, order, wanted)

    async def remove(self, deployment: DeploymentName) -> None:
        async with self._lock:
            base = await self._base(await self._processes.look())
            if deployment in base:
                rest = {name: order for name, order in base.items() if name != deployment}
                with self._processes.recovering():
                    await self._processes.replace(rest)

    async def observe(self) -> Mapping[DeploymentName, RouteOrder]:
        async with self._lock:
            return (await self._processes.look()).in_force()

    async def hold_ports(self) -> Mapping[Listen, Unheld]:
        """Of paused listeners, which every look does; where it listens nobody else can."""
        async with self._lock:
            if not (await self._processes.look()).known:
                await self._holder.shutdown()
            return self._processes.unheld

    async def connections(self, endpoint: Endpoint) -> int:
        async with self._lock:
            await self._processes.look()
            count = 0
            for process in self._processes.all:
                with contextlib.suppress(OSError):
                    sessions = (await process.statistics()).sessions
                    count += sessions.get(server_name(endpoint), 0)
            return count

    async def reset(self, endpoint: Endpoint) -> int:
        """Clients get a RST where the kernel lends us HAProxy's sockets, and else a FIN.

        A FIN, too, where nothing is under way.
        """
        async with self._lock:
            await self._processes.look()
            count = 0
            for process in self._processes.all:
                with contextlib.suppress(OSError):
                    count += await _reset_in(process, server_name(endpoint), self._disconnect)
            return count

    async def refused(self) -> Refused:
        """By deployments, of the process in force: the others take no connections."""
        async with self._lock:
            await self._processes.look()
            try:
                return Refused(counts=await self._processes.current.refused())
            except OSError as error:
                raise TrafficError("HAProxy ended meanwhile") from error

    def refusal(self, listen: Listen) -> str | None:
        """None: IPv6 is served too."""
        return None

    async def close(self) -> None:
        """The process runs on."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        await self._holder.close()

    async def shutdown(self) -> None:
        """Uninstall: end every process with its connections, forget the routes. Idempotent."""
        await self.close()
        async with self._lock:
            await self._processes.end()
            await self._holder.shutdown()
            self._record.forget()

    async def _base(self, view: HaproxyView) -> Orders:
        """What is in force, and of what somebody broke there, what was recorded."""
        return view.known if view.intact else {**await self._record.load(), **view.known}

    async def _switch(self, view: HaproxyView, order: RouteOrder, wanted: Orders) -> None:
        """One map change; all that it needs is prepared before.

        The edition that it replaces is cleaned up by the next switch.
        """
        process = self._processes.current
        directory, edition = process.place.directory, view.next_edition
        value = route_value(edition, order)
        recorded = await self._record.load()
        try:
            await process.order(_preparations(view, order, edition, directory / MEMBERS))
            await self._record.save(wanted)
            try:
                await process.order([f"set map {directory / ROUTES} {order.deployment} {value}"])
            except (TrafficError, OSError):
                await self._record.save(recorded)
                raise
        except OSError as error:
            raise TrafficError("HAProxy ended meanwhile") from error
        await self._processes.look()

    async def _watch(self) -> None:
        """Wait for the process's end, and start another."""
        while True:
            await self._processes.ended()
            try:
                async with self._lock:
                    await self._processes.look()
            except TrafficError as error:
                _log.warning("haproxy cannot be started error=%s", describe(error))
                await asyncio.sleep(_RESTART_PAUSE_S)


def _preparations(view: HaproxyView, order: RouteOrder, edition: int, members: Path) -> list[str]:
    commands = [f"del map {members} {key}" for key in view.garbage]
    servers = {server_name(one) for binding in order.bindings for one in binding.endpoints}
    for name in sorted(servers - view.statistics.servers):
        if name not in view.statistics.sessions:
            commands.append(f"add server {BACKEND}/{name} {name} weight 0")
        commands.append(f"enable server {BACKEND}/{name}")
    entries = members_of(edition, order).items()
    return commands + [f"add map {members} {key} {value}" for key, value in entries]


async def _reset_in(process: HaproxyProcess, server: str, disconnect: Disconnect) -> int:
    """Raises OSError if it ended, TrafficError if a session stays.

    Sessions that are too many to be listed are closed by HAProxy itself, without a reset: a drain
    ends however many there are.
    """
    if not (open_now := (await process.statistics()).sessions.get(server)):
        return 0
    try:
        listing = await process.sessions()
    except TrafficError as error:
        _log.warning("clients are closed, not reset error=%s", describe(error))
        listing = ""
    sessions = sessions_of(server, listing)
    at_rest = await disconnect(await process.pid(), sessions)
    await process.order([f"shutdown sessions server {BACKEND}/{server}"])
    for _ in range(_RESET_ROUNDS):
        if not (await process.statistics()).sessions.get(server):
            return len(sessions) - at_rest if listing else open_now
        await asyncio.sleep(_RESET_ROUND_S)
    raise TrafficError(f"HAProxy does not let go of the clients of {server}")
