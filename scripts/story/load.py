"""A steady stream of requests: a new connection each, sent by the clock, not by the answers."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field

TIMEOUT_S = 15.0


@dataclass
class Tally:
    """What became of the requests of one step."""

    sent: int = 0
    failed: int = 0
    reset: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        return self.failed + self.reset


class Load:
    """Open loop over TLS and in the clear, in turns. A step's tally has the requests it began."""

    def __init__(
        self,
        https_port: int,
        plain_port: int,
        per_second: float = 10.0,
        address: str = "127.0.0.1",
    ) -> None:
        self._address = address
        self._ports = (https_port, plain_port)
        self._gap_s = 1 / per_second
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE  # the enclave's key is for the agent to judge
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self.tally = Tally()
        self.seen_version: str | None = None

    def start(self) -> None:
        self._runner = asyncio.create_task(self._run())

    async def step(self) -> Tally:
        """End this step: wait for its requests, give its tally, begin another."""
        done, self.tally = self.tally, Tally()
        tasks = set(self._tasks)
        if tasks:
            await asyncio.wait(tasks)
        return done

    async def stop(self) -> Tally:
        if self._runner is not None:
            self._runner.cancel()
        return await self.step()

    async def _run(self) -> None:
        begin, count = time.monotonic(), 0
        while True:
            task = asyncio.create_task(self._one(self._ports[count % 2], count % 2 == 0))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            count += 1
            await asyncio.sleep(max(0.0, begin + count * self._gap_s - time.monotonic()))

    async def _one(self, port: int, tls: bool) -> None:
        tally = self.tally
        tally.sent += 1
        started = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                body = await self._ask(port, tls)
            version = json.loads(body)["version"]
        except ConnectionResetError:
            tally.reset += 1
            tally.failures["reset"] += 1
        except (OSError, ValueError, KeyError, TimeoutError, EOFError) as error:
            tally.failed += 1
            tally.failures[f"{type(error).__name__}: {error}"] += 1
        else:
            tally.versions[version] += 1
            tally.latencies_s.append(time.monotonic() - started)
            self.seen_version = version

    async def _ask(self, port: int, tls: bool) -> bytes:
        reader, writer = await asyncio.open_connection(
            self._address, port, ssl=self._tls if tls else None
        )
        try:
            writer.write(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n")
            answer = await reader.read(-1)
            head, _, body = answer.partition(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise ValueError(head.split(b"\r\n", 1)[0].decode(errors="replace") or "no answer")
            return body
        finally:
            writer.close()
