"""Nobody reads the log: nothing waits for it, and what was lost is told."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.journal import JournalHandler
from agent.host.patient_stderr import PatientStderr

MANY = 20_000
WIDE = "x" * 200


def a_record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": 20, "levelname": "INFO"})


@pytest.fixture(params=["socket", "pipe"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Where is written, and where is read."""
    if request.param == "pipe":
        reads, writes = os.pipe()
    else:
        ours, others = socket.socketpair()
        writes, reads = ours.detach(), others.detach()
    yield writes, reads
    os.close(writes)
    os.close(reads)


def read_all(reads: int) -> str:
    os.set_blocking(reads, False)
    data = b""
    try:
        while piece := os.read(reads, 1 << 16):
            data += piece
    except BlockingIOError:
        pass
    return data.decode()


def test_a_reader_that_hangs_costs_lines_and_no_time(ends: tuple[int, int]) -> None:
    writes, reads = ends
    handler = PatientStderr(writes)
    for number in range(MANY):
        handler.emit(a_record(f"{number} {WIDE}"))  # far more than any buffer: it would wait
    first = read_all(reads)
    handler.emit(a_record("here again"))
    lines = (first + read_all(reads)).splitlines()
    handler.close()
    *taken, told, last = lines
    assert taken == [f"{number} {WIDE}" for number in range(len(taken))], "no line is torn"
    assert 0 < len(taken) < MANY
    assert told == f"{MANY - len(taken)} log records were lost: nobody took them"
    assert last == "here again"
    assert os.get_blocking(writes), "others write there, too"


def test_so_it_is_behind_a_journal_that_takes_nothing(short_dir: Path) -> None:
    ours, others = socket.socketpair()
    with ours, others, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(short_dir / "journal"))
        stderr = PatientStderr(ours.fileno())
        handler = JournalHandler(
            fields=lambda _: {}, fallback=stderr, address=str(short_dir / "journal")
        )
        for number in range(MANY):
            handler.emit(a_record(f"{number} {WIDE}"))
        handler.close()
        stderr.close()


def test_nobody_at_all_is_no_error() -> None:
    ours, others = socket.socketpair()
    others.close()
    with ours:
        handler = PatientStderr(ours.fileno())
        handler.emit(a_record("said to nobody"))
        handler.close()
