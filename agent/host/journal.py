"""Log records with their fields to journald, so that `journalctl ENCLAVE=…` finds them.

The native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram an entry, of `NAME=value`
lines; a value of several lines goes with its length. A field `enclave` is ENCLAVE in the journal.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Mapping

ADDRESS = "/run/systemd/journal/socket"
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def leads_to_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Whether this descriptor is the very stream that systemd connected to the journal."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def entry(fields: Mapping[str, object]) -> bytes:
    """The datagram of one entry. Names that the journal would not take are left out."""
    data = bytearray()
    for key, value in fields.items():
        name, text = key.upper(), str(value).encode(errors="replace")
        if not _NAME.fullmatch(name):
            continue
        if b"\n" in text:
            data += name.encode() + b"\n" + struct.pack("<Q", len(text)) + text + b"\n"
        else:
            data += name.encode() + b"=" + text + b"\n"
    return bytes(data)


class JournalHandler(logging.Handler):
    """What cannot be handed over (no journald, too long) goes to `fallback`. Never waits."""

    def __init__(
        self,
        *,
        fields: Callable[[logging.LogRecord], Mapping[str, object]],
        fallback: logging.Handler,
        address: str = ADDRESS,
    ) -> None:
        super().__init__()
        self._fields = fields
        self._fallback = fallback
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """A message shows its fields, too: who reads the journal as text sees all of it."""
        given = self._fields(record)
        text = record.getMessage() + "".join(f" {key}={value}" for key, value in given.items())
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        body = {
            **given,
            "message": text,
            "event": record.getMessage(),
            "logger": record.name,
            "priority": _PRIORITY.get(record.levelno, 6),
            "syslog_identifier": "enclave-agent",
        }
        try:
            self._socket.sendto(entry(body), self._address)
        except OSError:
            self._fallback.emit(record)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        super().close()
