"""Log records as journald takes them."""

from __future__ import annotations

import logging
import os
import socket
import struct
from pathlib import Path

from agent.host.journal import JournalHandler, entry, leads_to_journal


def test_an_entry_is_of_lines_and_a_value_of_several_goes_with_its_length() -> None:
    assert entry({"enclave": "abc", "message": "vm phase"}) == b"ENCLAVE=abc\nMESSAGE=vm phase\n"
    two = b"a\nb"
    assert entry({"error": "a\nb"}) == b"ERROR\n" + struct.pack("<Q", len(two)) + two + b"\n"


def test_a_name_that_the_journal_would_not_take_is_left_out() -> None:
    assert entry({"_pid": 1, "a-b": 2, "x": 3}) == b"X=3\n"


def test_only_the_very_stream_of_the_journal_counts(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        found = os.fstat(file.fileno())
        right = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert leads_to_journal(right, file.fileno())
        assert not leads_to_journal({"JOURNAL_STREAM": "1:1"}, file.fileno())
        assert not leads_to_journal({}, file.fileno())


def test_a_record_arrives_with_its_fields_and_goes_elsewhere_if_nobody_is_there(
    short_dir: Path,
) -> None:
    kept: list[logging.LogRecord] = []
    fallback = logging.Handler()
    fallback.emit = kept.append  # type: ignore[method-assign]
    where = str(short_dir / "journal")
    handler = JournalHandler(
        fields=lambda record: {"enclave": record.enclave}, fallback=fallback, address=where
    )
    record = logging.makeLogRecord({"msg": "vm phase", "levelno": 30, "enclave": "abc"})
    handler.emit(record)
    assert kept == [record]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(where)
        handler.emit(record)
        lines = journal.recv(1000).decode().splitlines()
    handler.close()
    assert {"ENCLAVE=abc", "EVENT=vm phase", "PRIORITY=4"} < set(lines)
    assert "MESSAGE=vm phase enclave=abc" in lines
