"""The agent under measurement, as a process, and what takes everything of it back afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from agent.config_file import load_config
from agent.daemon.parts import restore_host
from agent.errors import AgentError, describe
from bench.place import ROOT, Place
from bench.processes import pids_with, stop_pids

_READY_S = 30.0
_OVER = frozenset({"completed", "failed", "cancelled"})


class BenchError(Exception):
    """Something that is no measure went wrong: there is nothing to state."""


class Daemon:
    """Starts, stops and asks one agent."""

    def __init__(self, place: Place, lag: Path | None = None, module: str | None = None) -> None:
        """`lag`: where a probe of its event loop writes; `module`: what runs in its place."""
        self.place = place
        self._lag = lag
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        if self._process is None or self._process.poll() is not None:
            raise BenchError(f"the agent does not run; see {self.place.log}")
        return self._process.pid

    async def start(self) -> float:
        """Seconds from its start to READY=1."""
        path = self.place.run / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
            notify.bind(str(path))
            started = time.monotonic()
            self._process = self._spawn(path)
            await self._wait_ready(notify)
            return time.monotonic() - started

    def _spawn(self, notify: Path) -> subprocess.Popen[bytes]:
        with self.place.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self._program()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
            )

    def _program(self) -> tuple[str, ...]:
        config = str(self.place.config)
        if self._module is not None:
            return (self._module, config)
        if self._lag is None:
            return ("agent", "--config", config, "run")
        return ("bench.watched", config, str(self._lag))

    async def _wait_ready(self, notify: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_READY_S):
                while b"READY=1" not in (await loop.sock_recv(notify, 4096)).split(b"\n"):
                    pass
        except TimeoutError:
            tail = self.place.log.read_text(errors="replace")[-2000:]
            raise BenchError(f"the agent did not get ready; its log ends with:\n{tail}") from None

    async def stop(self) -> None:
        """SIGTERM, and wait until it is gone. VMs and data plane go on."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request over the agent's own socket, on a kept connection."""
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self.place.socket))
            self._session = aiohttp.ClientSession("http://agent", connector=connector)
        try:
            async with self._session.request(method, path, json=body) as answer:
                text = await answer.read()
        except aiohttp.ClientError as error:
            raise BenchError(f"{method} {path}: {error}; see {self.place.log}") from error
        return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text

    async def want(self, method: str, path: str, body: Any = None) -> Any:
        """A request that has to succeed."""
        status, answer = await self.ask(method, path, body)
        if status >= 300:
            raise BenchError(f"{method} {path}: {status}: {answer}")
        return answer

    async def deployment(self, name: str) -> Any:
        return await self.want("GET", f"/v1/deployments/{name}")

    async def finish(self, name: str, timeout_s: float = 180, every_s: float = 0.5) -> Any:
        """The deployment's newest update once it is over; it has to be completed."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            update = (await self.deployment(name))["update"]
            if update["status"] == "completed":
                return update
            if update["status"] in _OVER:
                raise BenchError(f"{name}: {update['status']}: {update['error']}")
            await asyncio.sleep(every_s)
        raise BenchError(f"{name}: the update is not over after {timeout_s:.0f} s")

    async def delete(self, name: str) -> None:
        """Delete a deployment and wait until nothing of it is left."""
        await self.want("DELETE", f"/v1/deployments/{name}")
        deadline = time.monotonic() + 60
        while (await self.ask("GET", f"/v1/deployments/{name}"))[0] != 404:
            if time.monotonic() > deadline:
                raise BenchError(f"{name} is not gone a minute after it was deleted")
            await asyncio.sleep(0.1)

    async def decided_at(self, update: Any) -> str:
        """When the switch of an update was decided, as the event says it."""
        after = 0
        while True:
            page = await self.want("GET", f"/v1/events?after={after}")
            if not page["events"]:
                raise BenchError(f"no event tells the switch of update {update['id']}")
            for event in page["events"]:
                after = event["sequence"]
                if event["update"] == update["id"] and event["to"] == "ready/switch":
                    at: str = event["at"]
                    return at


@contextlib.asynccontextmanager
async def running(
    place: Place, *, lag: Path | None = None, module: str | None = None, **sections: Any
) -> AsyncIterator[Daemon]:
    """An agent of this configuration; afterwards nothing of it is left, whatever happened."""
    await sweep(place)
    place.make()
    place.write_config(**sections)
    daemon = Daemon(place, lag, module)
    try:
        await daemon.start()
        yield daemon
    finally:
        await asyncio.shield(_leave(place, daemon))


async def _leave(place: Place, daemon: Daemon) -> None:
    """In order if the agent still answers; by force otherwise, or where that left something."""
    with contextlib.suppress(BenchError, OSError, TimeoutError):
        async with asyncio.timeout(60):
            names = [one["name"] for one in (await daemon.want("GET", "/status"))["deployments"]]
            for name in names:
                await daemon.ask("POST", f"/v1/deployments/{name}/updates/current/cancel")
            await asyncio.gather(*(_delete(daemon, name) for name in names))
    await daemon.stop()
    await sweep(place)


async def _delete(daemon: Daemon, name: str) -> None:
    """An update that cannot be cancelled any more refuses for a while."""
    while (await daemon.ask("DELETE", f"/v1/deployments/{name}"))[0] == 409:
        await asyncio.sleep(0.3)
    while (await daemon.ask("GET", f"/v1/deployments/{name}"))[0] != 404:
        await asyncio.sleep(0.1)


async def sweep(place: Place) -> None:
    """End every process that this bench started and left, and restore links, rules, sysctls.

    A process is ours if the bench's own directories are in its arguments.
    """
    for mark in (str(place.config), f"{place.run}/"):
        await stop_pids(pids_with(mark))
    if place.config.exists():
        try:
            await restore_host(load_config(place.config, {}))
        except AgentError as error:
            raise BenchError(f"could not put everything back: {describe(error)}") from error
    shutil.rmtree(place.run, ignore_errors=True)
