"""The real API over the engine in memory, on real sockets: in this loop, or in a thread's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from agent.api.listeners import Listener, local_listener, rpc_socket, tcp_listener
from agent.api.roles import Role
from agent.api.server import ApiServer, Rpc
from agent.api.surface import Surface
from agent.pki.keeper import FleetCertificates
from agent.store.port import KeptAnswer
from tests.fakes.engine import FakeEngine
from tests.fakes.fleet import HOST, NotedProblems, Pki, first_read

T = TypeVar("T")


class MemoryAnswers:
    """Kept answers; whoever holds on to this object has "restarted" with them."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str, str], KeptAnswer] = {}
        self.raises: Exception | None = None

    async def get(self, caller: str, method: str, path: str, key: str) -> KeptAnswer | None:
        return self.kept.get((caller, method, path, key))

    async def put(self, caller: str, method: str, path: str, key: str, answer: KeptAnswer) -> None:
        if self.raises is not None:
            raise self.raises
        self.kept[caller, method, path, key] = answer


def surface_of(engine: FakeEngine, answers: MemoryAnswers | None = None, **more: Any) -> Surface:
    kept = answers if answers is not None else MemoryAnswers()
    return Surface(engine=engine, answers=kept, body_key=b"k" * 32, **more)


def port_of(listener: Listener) -> int:
    port: int = listener.sock.getsockname()[1]
    return port


class ThreadedApi:
    """Serves from a thread, for clients that block. Touch the engine through `do` only."""

    def __init__(self, socket_path: Path, engine: FakeEngine | None = None) -> None:
        self.path = socket_path
        self.engine = engine or FakeEngine()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: ApiServer | None = None

    def __enter__(self) -> ThreadedApi:
        self._thread.start()
        self._wait(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, work: Callable[[FakeEngine], T]) -> T:
        """Run it in the server's loop."""

        async def run() -> T:
            return work(self.engine)

        return self._wait(run())

    def when(self, ready: Callable[[FakeEngine], bool]) -> None:
        """Until the engine is so, asked whenever its bell rings."""

        async def wait() -> None:
            while not ready(self.engine):
                await self.engine.changed.beyond(self.engine.changed.count)

        self._wait(wait())

    def stop(self) -> None:
        """As if the agent had ended."""
        if self._server is not None:
            self._wait(self._server.close())
            self._server = None

    def start(self) -> None:
        self._wait(self._start())

    async def _start(self) -> None:
        self._server = ApiServer(surface_of(self.engine), [local_listener(self.path)])
        await self._server.start()

    def _wait(self, work: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(timeout=100)


class ThreadedTcp(ThreadedApi):
    """The same on loopback TCP with the role of the unix socket: for tests only."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(Path("/nowhere"), engine)
        self.port = 0

    async def _start(self) -> None:
        listener = tcp_listener("127.0.0.1", 0, Role.LOCAL)
        self.port = port_of(listener)
        self._server = ApiServer(surface_of(self.engine), [listener])
        await self._server.start()


class ThreadedRpc(ThreadedTcp):
    """The same over TLS, for whoever has a certificate of this fleet with a role."""

    def __init__(self, engine: FakeEngine, pki: Pki) -> None:
        super().__init__(engine)
        self.pki = pki

    async def _start(self) -> None:
        trust = FleetCertificates(self.pki.tls(), HOST, NotedProblems())
        await first_read(trust)
        sock = rpc_socket("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self._server = ApiServer(surface_of(self.engine), [], Rpc(sock, trust))
        await self._server.start()
