"""A served API in the test's own loop, with a client on each listener."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.api.listeners import local_listener, tcp_listener
from agent.api.roles import Role
from agent.api.server import ApiServer
from tests.api_bodies import DEPLOY
from tests.fakes.api_server import MemoryAnswers, port_of, surface_of
from tests.fakes.engine import FakeEngine


@dataclass
class Answered:
    status: int
    headers: Any
    text: str
    json: Any


@dataclass
class Api:
    """`ask` over the unix socket, `ask_status` over the loopback listener."""

    engine: FakeEngine
    answers: MemoryAnswers
    server: ApiServer
    session: aiohttp.ClientSession
    socket: Path
    status_port: int

    async def ask(self, method: str, path: str, **more: Any) -> Answered:
        return await self._ask(method, f"http://agent{path}", more)

    async def ask_status(self, method: str, path: str, **more: Any) -> Answered:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"http://127.0.0.1:{self.status_port}{path}", **more
            ) as response,
        ):
            return await _answered(response)

    async def _ask(self, method: str, url: str, more: dict[str, Any]) -> Answered:
        async with self.session.request(method, url, **more) as response:
            return await _answered(response)

    async def deploy(self, name: str = "web", **more: Any) -> Answered:
        return await self.ask("PUT", f"/v1/deployments/{name}", json=DEPLOY | more)


async def _answered(response: aiohttp.ClientResponse) -> Answered:
    text = await response.text()
    is_json = response.content_type.endswith("json")
    parsed = await response.json(content_type=None) if is_json and text else None
    return Answered(response.status, response.headers, text, parsed)


@pytest.fixture
async def api(short_dir: Path) -> AsyncIterator[Api]:
    engine, answers = FakeEngine(), MemoryAnswers()
    local = local_listener(short_dir / "agent.sock")
    status = tcp_listener("127.0.0.1", 0, Role.STATUS)
    server = ApiServer(surface_of(engine, answers), [local, status])
    await server.start()
    connector = aiohttp.UnixConnector(str(short_dir / "agent.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Api(engine, answers, server, session, short_dir / "agent.sock", port_of(status))
    await server.close()
