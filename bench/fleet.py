"""A fleet for the bench: its certificates, and a coordinator that notes what it is told when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from bench.place import Place, free_ports
from tests.fakes.fleet import Member, Pki

HOST = "bench"  # the bench's agent by its configuration
INTERVAL_S = 10


class Fleet:
    """`sections` of the configuration join an agent to it; `observer` may read of it."""

    def __init__(self, directory: Path) -> None:
        self._pki = Pki(directory)
        self._own = self._pki.section(self._pki.host(HOST))
        self.observer = self._pki.observer()
        self.rpc_port, self._port = free_ports(2)
        self._told: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        self.reports = 0

    @property
    def sections(self) -> dict[str, Any]:
        return {
            "listen": {"rpc": f"127.0.0.1:{self.rpc_port}", "tls": self._own},
            "coordinator": {"url": f"https://127.0.0.1:{self._port}", "interval_s": INTERVAL_S},
        }

    def files(self, member: Member) -> tuple[Path, ...]:
        """Certificate, key and authority, as the bench's processes take them."""
        return (member.pem, member.key, self._pki.ca)

    def context(self, member: Member) -> ssl.SSLContext:
        return self._pki.context(member)

    async def told(self, state: str) -> float:
        """When (monotonic) it was known here that the host is so: `draining`, `admitting`."""
        while True:
            to, at = await self._told.get()
            if to == state:
                return at

    async def _report(self, request: web.Request) -> web.Response:
        text = await request.read()
        at = time.monotonic()
        self.reports += 1
        events = json.loads(text)["events"]
        for event in events:
            if event["kind"] == "host":
                self._told.put_nowait((event["to"], at))
        newest = events[-1]["sequence"] if events else self._newest
        self._newest = max(self._newest, newest)
        answer = {"session_ttl_s": 30, "epoch": 1, "events_acknowledged": self._newest}
        return web.json_response(answer)

    _newest = 0

    async def _serve(self) -> web.AppRunner:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_put("/v1/agents/{host}/report", self._report)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = self._pki.context(self._pki.coordinator(), server=True)
        await web.TCPSite(runner, "127.0.0.1", self._port, ssl_context=context).start()
        return runner


@contextlib.asynccontextmanager
async def fleet(place: Place) -> AsyncIterator[Fleet]:
    """One whose coordinator serves until the end of the block; nothing of it is left then."""
    place.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.state) as directory:
        made = Fleet(Path(directory) / "pki")
        runner = await made._serve()
        try:
            yield made
        finally:
            await runner.cleanup()
