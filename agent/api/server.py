"""The API's servers: every listener with its role, over one surface."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from agent.api.app import make_app
from agent.api.connection import Connection, PeerConnection
from agent.api.listeners import Listener, remove
from agent.api.peers import Peers
from agent.api.roles import Role
from agent.api.surface import Surface
from agent.api.tls_accept import TlsAcceptor
from agent.door.connection import Room
from agent.door.plain import Crowd, PlainAcceptor
from agent.host.restart_on_error import restart_on_error
from agent.pki.peer import Peer

if TYPE_CHECKING:
    from agent.pki.keeper import FleetCertificates

_SHUTDOWN_S = 3.0
_HEAR_OUT_S = 0.05
_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Rpc:
    """The TLS listener: a bound socket, and the certificates that say who may connect."""

    sock: socket.socket
    trust: FleetCertificates


class ApiServer:
    """Serves until closed. The listeners are its own from `start` on: `close` closes them."""

    def __init__(
        self,
        surface: Surface,
        listeners: Sequence[Listener],
        rpc: Rpc | None = None,
        room: Room | None = None,
    ) -> None:
        self._surface = surface
        self._listeners = tuple(listeners)
        self._rpc = rpc
        self._runners: list[web.AppRunner] = []
        self._acceptors: list[PlainAcceptor] = []
        self._room = room or Room()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to serve on every listener. On failure nothing is left serving."""
        self._tasks.append(asyncio.create_task(self._counters(), name="api-tally"))
        try:
            for listener in self._listeners:
                await self._serve(listener)
            if self._rpc is not None:
                await self._serve_peers(self._rpc)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Take no more connections, end the streams, let requests finish for a moment."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for acceptor in self._acceptors:
            await acceptor.stop()
        for listener in self._listeners:
            listener.sock.close()
        for listener in self._listeners:
            remove(listener)
        if any(listener.handed_over for listener in self._listeners):
            # Who was accepted a moment ago has not been heard yet, and would be hung up on.
            await asyncio.sleep(_HEAR_OUT_S)
        for runner in self._runners:
            await runner.cleanup()
        if self._rpc is not None:
            self._rpc.sock.close()
        self._tasks.clear()
        self._runners.clear()
        self._acceptors.clear()

    async def _serve(self, listener: Listener) -> None:
        server = await self._server(listener.role)

        def connect(peer: str, crowd: Crowd) -> Connection:
            return Connection(server, room=self._room, peer=f"{listener.role} {peer}", crowd=crowd)

        listener.sock.listen(_BACKLOG)
        acceptor = PlainAcceptor(listener.sock, connect, self._room.limits)
        acceptor.start(f"api-{listener.role}")
        self._acceptors.append(acceptor)

    async def _serve_peers(self, rpc: Rpc) -> None:
        """From the first moment on at which there are certificates."""
        servers = {role: await self._server(role) for role in (Role.COORDINATOR, Role.OBSERVER)}

        def connect(
            role: Role, peer: Peer, lost: Callable[[PeerConnection], None]
        ) -> PeerConnection:
            return PeerConnection(servers[role], room=self._room, peer=peer, lost=lost)

        peers = Peers(rpc.trust, connect)
        counters = self._surface.counters

        async def gate() -> None:
            seen = rpc.trust.changed.count
            while rpc.trust.material is None:
                seen = await rpc.trust.changed.beyond(seen)
            rpc.sock.listen(_BACKLOG)
            await TlsAcceptor(
                rpc.sock, rpc.trust.server_context, peers.enter, counters.refused
            ).run()

        for work in (gate, peers.keep):
            self._tasks.append(asyncio.create_task(restart_on_error("rpc", work)))

    async def _server(self, role: Role) -> web.Server:
        runner = web.AppRunner(
            make_app(self._surface, role),
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await runner.setup()
        self._runners.append(runner)
        assert runner.server is not None
        return runner.server

    async def _counters(self) -> None:
        """Count what ends, as it is published."""
        engine, counters = self._surface.engine, self._surface.counters
        seen = engine.changed.count
        while True:
            counters.observe(engine.snapshot)
            seen = await engine.changed.beyond(seen)
