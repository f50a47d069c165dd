"""The console's log and its harvesting, with a ring in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

import pytest

from agent.enclaves.console import CHUNK_BYTES, LOG_BYTES, ConsoleLog, Harvester
from agent.enclaves.monitor import MonitorError

RING_BYTES = 1 << 20


class Ring:
    """What QEMU's ring does: the newest bytes, read once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.failures: deque[Exception] = deque()
        self.reads = 0

    def print(self, data: bytes) -> None:
        self._data += data
        del self._data[:-RING_BYTES]

    async def read(self, max_bytes: int) -> bytes:
        self.reads += 1
        if self.failures:
            raise self.failures.popleft()
        data = bytes(self._data[:max_bytes])
        del self._data[:max_bytes]
        return data


class EndlessRing(Ring):
    """A guest that prints faster than anybody reads."""

    async def read(self, max_bytes: int) -> bytes:
        self.reads += 1
        return b"x" * max_bytes


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_the_log_keeps_every_byte_as_it_is(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "log")
    log.append(bytes(range(256)))
    log.append(b"\r\n\x1b[0m")
    assert log.tail(1 << 20) == bytes(range(256)) + b"\r\n\x1b[0m"
    assert log.tail(4) == b"\x1b[0m"
    assert log.tail(0) == b""


def test_the_log_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "log")
    log.append(b"maybe a secret")
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700


def test_a_tail_reaches_over_the_segments_and_the_oldest_bytes_go_first(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "log", limit_bytes=200)
    printed = b""
    for number in range(100):
        line = b"line %04d\n" % number
        printed += line
        log.append(line)
        kept = log.tail(1 << 20)
        assert printed.endswith(kept)
        assert len(kept) >= min(len(printed), 100)
        assert size_of(tmp_path / "log") <= 200


def test_one_big_piece_leaves_its_end(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "log", limit_bytes=200)
    log.append(b"a" * 1000 + b"b" * 100)
    assert log.tail(1 << 20) == b"b" * 100


def test_a_gigabyte_leaves_eight_mebibytes(tmp_path: Path) -> None:
    log = ConsoleLog(tmp_path / "log")
    piece = b"x" * RING_BYTES
    for _ in range(1024):
        log.append(piece)
    log.append(b"the end")
    assert LOG_BYTES // 2 <= size_of(tmp_path / "log") <= LOG_BYTES
    assert log.tail(7) == b"the end"


async def test_a_drain_takes_all_that_the_ring_holds(tmp_path: Path) -> None:
    log, ring = ConsoleLog(tmp_path / "log"), Ring()
    harvester = Harvester(log, ring.read, RING_BYTES)
    assert await harvester.drain() == 0
    ring.print(b"x" * (3 * CHUNK_BYTES) + b"end")
    assert await harvester.drain() == 3 * CHUNK_BYTES + 3
    assert log.tail(3) == b"end"


async def test_a_guest_that_never_stops_printing_cannot_hold_a_drain_up(tmp_path: Path) -> None:
    ring = EndlessRing()
    assert (
        await Harvester(ConsoleLog(tmp_path / "log"), ring.read, RING_BYTES).drain() == RING_BYTES
    )


async def test_two_drains_at_once_keep_the_order(tmp_path: Path) -> None:
    log, ring = ConsoleLog(tmp_path / "log"), Ring()
    harvester = Harvester(log, ring.read, RING_BYTES)
    text = b"".join(b"%07d\n" % number for number in range(4 * CHUNK_BYTES // 8))
    ring.print(text)
    await asyncio.gather(*(harvester.drain() for _ in range(4)))
    assert log.tail(len(text)) == text


async def test_harvesting_goes_on_after_a_monitor_that_did_not_answer(tmp_path: Path) -> None:
    log, ring = ConsoleLog(tmp_path / "log"), Ring()
    ring.failures.append(MonitorError("no answer"))
    ring.print(b"later")
    looked = asyncio.Event()

    def look() -> None:
        if log.tail(5) == b"later":
            looked.set()

    task = asyncio.create_task(Harvester(log, ring.read, RING_BYTES).run(look))
    await looked.wait()
    task.cancel()
    await asyncio.wait((task,))
    assert ring.reads >= 2


async def test_a_log_that_cannot_be_written_is_told_once_and_loses_only_its_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "log"
    blocked.write_bytes(b"a file where the directory should be")
    log, ring = ConsoleLog(blocked), Ring()
    harvester = Harvester(log, ring.read, RING_BYTES)
    for _ in range(3):
        ring.print(b"lost")
        assert await harvester.drain() == 4
    assert [record.message for record in caplog.records] == ["console log cannot be written"]
    blocked.unlink()
    ring.print(b"kept")
    await harvester.drain()
    assert log.tail(100) == b"kept"
