"""Open-loop GET requests on kept connections, as a process of its own.

    python -m bench.status_load PORT PATH RATE SECONDS CONNECTIONS [CERTIFICATE KEY CA]

Request number k is due at start + k / rate; its latency counts from then, so that a late start,
and waiting for a free connection, count too. With a certificate the connections are over TLS.
Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import sys
import time
from collections import deque

from bench.requests import member_context


class Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = bytearray()
        self._answered: asyncio.Future[int] | None = None
        self.is_open = True
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("closed"))

    def ask(self) -> asyncio.Future[int]:
        """Done with the status, when the whole answer is there; only while it is open."""
        assert self.transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(self._request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._answered is None:
            return
        head = bytes(self._buffer[:end]).lower()
        start = head.index(b"content-length:") + 15
        length = int(head[start:].split(b"\r\n", 1)[0])
        if len(self._buffer) >= end + 4 + length:
            self._buffer.clear()
            self._answered.set_result(int(head.split(b" ", 2)[1]))


class Run:
    """The whole of it."""

    def __init__(self, rate: float, seconds: float) -> None:
        self._rate = rate
        self._count = int(rate * seconds)
        self._all: list[Connection] = []
        self._free: deque[Connection] = deque()
        self._due: deque[float] = deque()
        self.latencies_s: list[float] = []
        self.late_s: list[float] = []
        self.wrong = 0

    async def run(
        self, port: int, path: str, connections: int, tls: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        for _ in range(connections):
            _, made = await loop.create_connection(
                lambda: Connection(request), "127.0.0.1", port, ssl=tls
            )
            self._all.append(made)
            self._free.append(made)
        began = time.perf_counter() + 0.05
        for number in range(self._count):
            due = began + number / self._rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self.late_s.append(time.perf_counter() - due)
            self._due.append(due)
            self._send()
        while len(self.latencies_s) + self.wrong < self._count:
            await asyncio.sleep(0.01)
            if not any(one.is_open for one in self._all):
                self.wrong = self._count - len(self.latencies_s)

    def _send(self) -> None:
        while self._due and self._free:
            connection = self._free.popleft()
            if not connection.is_open:
                continue
            due = self._due.popleft()
            connection.ask().add_done_callback(
                lambda done, due=due, c=connection: self._took(done, due, c)  # type: ignore[misc]
            )

    def _took(self, done: asyncio.Future[int], due: float, connection: Connection) -> None:
        if done.exception() is not None or done.result() != 200:
            self.wrong += 1
        else:
            self.latencies_s.append(time.perf_counter() - due)
        self._free.append(connection)
        self._send()


def main() -> None:
    port, path, rate, seconds, connections, *files = sys.argv[1:]
    run = Run(float(rate), float(seconds))
    tls = member_context(*files) if files else None
    began = time.perf_counter()
    asyncio.run(run.run(int(port), path, int(connections), tls))
    used = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "latencies_s": run.latencies_s,
        "late_s": max(run.late_s),
        "wrong": run.wrong,
        "cpu": (used.ru_utime + used.ru_stime) / (time.perf_counter() - began),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
