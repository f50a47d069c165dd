"""The load, as a process of its own: open loop by the clock, and streams that reopen.

    python -m bench.load SPEC     SPEC: JSON, see `Spec`
    stdin   "tell": a line of counts so far; "stop": nothing new, and the last line when all that
            is under way has ended; end of file: the end, at once
    stdout  a line of JSON for each

Request number k is due at start + k / rate, whatever became of those before it; its latency counts
from when it was due, so that a generator that is late shows. Every request has a connection of its
own. In closed mode (`rate` 0) so many are always under way: that finds what is answered at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time

import msgspec

from bench.requests import Asker, Fault
from bench.streams import Streams

LATE_S = 0.05


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Every `tls_every`-th request goes over TLS; 0: none."""

    address: str
    plain_port: int
    https_port: int
    rate: float = 0
    at_once: int = 8
    tls_every: int = 16
    streams: int = 0
    stream_s: float = 20
    spread_s: float = 20
    timeout_s: float = 15


class Counts(msgspec.Struct, kw_only=True):
    """What became of the requests and streams so far. Times are wall clock, in seconds.

    `last_asked`: by whom a request was answered → when the last such request was begun.
    """

    begun: int = 0
    plain: int = 0
    tls: int = 0
    failed: int = 0
    reset: int = 0
    late: int = 0
    worst_late_s: float = 0
    streams_begun: int = 0
    streams_ended: int = 0
    streams_failed: int = 0
    streams_reset: int = 0
    why: dict[str, int] = {}
    last_asked: dict[str, float] = {}
    latencies_s: list[float] = []
    tls_latencies_s: list[float] = []
    cpu_s: float = 0
    elapsed_s: float = 0


class Load:
    """One run of it."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._asker = Asker(spec.address, spec.plain_port, spec.https_port, spec.timeout_s)
        self.counts = Counts()
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams = Streams(self._asker, spec.streams, spec.stream_s, spec.spread_s)
        self._began = time.monotonic()
        self._ended: float | None = None

    async def run(self, commands: asyncio.StreamReader) -> None:
        runner = asyncio.create_task(self._open() if self._spec.rate else self._closed())
        self._streams.start()
        try:
            while command := await commands.readline():
                if command.strip() == b"stop":
                    break
                self.tell()
            else:
                return
        finally:
            runner.cancel()
        self._ended = time.monotonic()
        with contextlib.suppress(asyncio.CancelledError):
            await runner  # one that broke offered less than was wanted: that is no result
        await asyncio.gather(*self._tasks)
        await self._streams.stop()
        self.tell(with_latencies=True)

    async def _open(self) -> None:
        spec, count = self._spec, 0
        while True:
            due = self._began + count / spec.rate
            await asyncio.sleep(due - time.monotonic())
            self._note_late(time.monotonic() - due)
            task = asyncio.create_task(self._one(self._is_tls(count), due))
            self._tasks.add(task)
            task.add_done_callback(self._over)
            count += 1

    def _over(self, task: asyncio.Task[None]) -> None:
        """One that broke is kept: it is told at the end."""
        if not task.cancelled() and task.exception() is None:
            self._tasks.discard(task)

    async def _closed(self) -> None:
        numbers = iter(range(sys.maxsize))

        async def go_on() -> None:
            for number in numbers:
                await self._one(self._is_tls(number), time.monotonic())

        async with asyncio.TaskGroup() as group:
            for _ in range(self._spec.at_once):
                group.create_task(go_on())

    def _is_tls(self, number: int) -> bool:
        every = self._spec.tls_every
        return bool(every) and number % every == every - 1

    def _note_late(self, late_s: float) -> None:
        counts = self.counts
        counts.late += late_s > LATE_S
        counts.worst_late_s = max(counts.worst_late_s, late_s)

    async def _one(self, tls: bool, due: float) -> None:
        counts = self.counts
        counts.begun += 1
        began = time.time()
        try:
            answerer = await self._asker.ask(tls)
        except Fault as fault:
            counts.reset += fault.is_reset
            counts.failed += not fault.is_reset
            counts.why[str(fault)] = counts.why.get(str(fault), 0) + 1
            return
        took = time.monotonic() - due
        (counts.tls_latencies_s if tls else counts.latencies_s).append(took)
        counts.tls += tls
        counts.plain += not tls
        counts.last_asked[answerer] = max(counts.last_asked.get(answerer, 0), began)

    def tell(self, *, with_latencies: bool = False) -> None:
        """A line of counts; the latencies only with the last."""
        counts, streams = self.counts, self._streams
        used = resource.getrusage(resource.RUSAGE_SELF)
        shown = msgspec.structs.replace(
            counts,
            streams_begun=streams.begun,
            streams_ended=streams.ended,
            streams_failed=streams.failed,
            streams_reset=streams.reset,
            why={**counts.why, **streams.why},
            cpu_s=used.ru_utime + used.ru_stime,
            elapsed_s=(self._ended or time.monotonic()) - self._began,
        )
        if not with_latencies:
            shown = msgspec.structs.replace(shown, latencies_s=[], tls_latencies_s=[])
        sys.stdout.write(json.dumps(msgspec.to_builtins(shown)) + "\n")
        sys.stdout.flush()


async def _main(spec: Spec) -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await Load(spec).run(commands)


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Spec)))
