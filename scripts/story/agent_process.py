"""The daemon and its command line, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from scripts.story.place import ROOT, Place

ENCLAVE_AGENT = (sys.executable, "-m", "agent")


class AgentProcess:
    """Starts, kills and asks the quickstart's own daemon; it outlives the script.

    `prefix` runs it elsewhere, and becomes it.
    """

    def __init__(self, place: Place, prefix: tuple[str, ...] = ()) -> None:
        self.place = place
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    def pid(self) -> int | None:
        """Of the daemon that this checkout started, if it runs and is that very one."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.place.pid_file.read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(self.place.config) in argv:
                return pid
        return None

    def start(self) -> None:
        """In a session of its own, so that it goes on without the script."""
        with self.place.log.open("ab") as log:
            process = subprocess.Popen(
                [*self._prefix, *ENCLAVE_AGENT, "--config", str(self.place.config), "run"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.place.pid_file.write_text(str(process.pid))
        self._process = process

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """And wait until it is gone."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + 20
        while self.pid() is not None and time.monotonic() < deadline:
            if self._process is not None:
                self._process.poll()
            time.sleep(0.02)

    async def ready(self, timeout_s: float = 30) -> float:
        """Seconds until it says that it is ready."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                status, _ = await self.get("/readyz")
                if status == 200:
                    return time.monotonic() - started
            if self._process is not None and self._process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        tail = self.place.log.read_text(errors="replace")[-3000:]
        raise SystemExit(f"the daemon did not get ready; its log ends with:\n{tail}")

    async def get(self, path: str) -> tuple[int, Any]:
        """One request over the agent's socket."""
        connector = aiohttp.UnixConnector(str(self.place.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://agent{path}") as answer,
        ):
            body = await answer.read()
            return answer.status, json.loads(body) if body.startswith((b"{", b"[")) else body

    async def call(self, *words: str) -> tuple[int, str]:
        """One command of the command line: its exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *ENCLAVE_AGENT,
            *("--socket", str(self.place.socket), *words),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace").strip()

    async def deployment(self, name: str) -> dict[str, Any] | None:
        status, body = await self.get(f"/v1/deployments/{name}")
        return body if status == 200 else None
