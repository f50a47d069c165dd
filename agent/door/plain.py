"""The door of a listener without TLS: a TCP address or a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

from agent.door.accept import accept_for_ever
from agent.door.connection import DoorConnection
from agent.door.crowd import EvictingQueue
from agent.door.limits import Limits, peer_of_address
from agent.host.restart_on_error import restart_on_error

_CREDENTIALS = struct.Struct("3i")  # of the other end of a unix socket: pid, uid, gid

Crowd = EvictingQueue[DoorConnection]
Connect = Callable[[str, Crowd], DoorConnection]


class PlainAcceptor:
    """Accepts on a listening socket, which stays its owner's. One peer is one address or user."""

    def __init__(self, listening: socket.socket, connect: Connect, limits: Limits) -> None:
        self._listening = listening
        self._connect = connect
        self._crowd: Crowd = EvictingQueue(limits.most, limits.per_peer)
        self._accepting: asyncio.Task[None] | None = None
        self._entering: set[asyncio.Task[Any]] = set()

    def start(self, name: str) -> None:
        """From now on, until `stop`."""
        self._accepting = asyncio.create_task(restart_on_error(name, self._accept), name=name)

    async def stop(self) -> None:
        """Accept no more. Whoever was accepted has a connection when this returns."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        await asyncio.gather(*self._entering, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()

        def take(sock: socket.socket, address: Any) -> None:
            task = loop.create_task(self._enter(sock, address))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

        await accept_for_ever(self._listening, take)

    async def _enter(self, sock: socket.socket, address: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection = self._connect(_peer_of(sock, address), self._crowd)
            await loop.connect_accepted_socket(lambda: connection, sock)
        except OSError:  # it has gone again
            sock.close()


def _peer_of(sock: socket.socket, address: Any) -> str:
    if sock.family != socket.AF_UNIX:
        return peer_of_address(str(address[0]))
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return f"uid {_CREDENTIALS.unpack(found)[1]}"
