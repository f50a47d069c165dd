"""Log lines to standard error, without ever waiting for whoever reads them.

Behind standard error may be the journal's stream, or a pipe: both are read by another program,
and a write waits once its buffer is full. While journald is stopped or hangs, a daemon that waits
there does nothing else any more. What is not taken is counted, and told when it is taken again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import sys

_LOST = "{} log records were lost: nobody took them"


class PatientStderr(logging.Handler):
    """`fd`: where the lines go; it stays as it is, since others write there, too."""

    def __init__(self, fd: int | None = None) -> None:
        super().__init__()
        self._fd = sys.stderr.fileno() if fd is None else fd
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(self._fd).st_mode):
            self._socket = socket.socket(fileno=os.dup(self._fd))
        self._rest = b""  # of a line that was taken in part
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """The whole line, or none of it in the end."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as the library does: logging is no reason to fail
            self.handleError(record)
            return
        if self._lost and self._send_rest():
            level = {"levelno": logging.WARNING, "levelname": "WARNING"}
            told = logging.makeLogRecord({"msg": _LOST.format(self._lost), **level})
            if self._take(self.format(told)):
                self._lost = 0
        if not self._take(line):
            self._lost += 1

    def _take(self, line: str) -> bool:
        if not self._send_rest():
            return False
        data = line.encode(errors="replace") + b"\n"
        taken = self._write(data)
        self._rest = data[taken:] if taken else b""
        return taken > 0

    def _send_rest(self) -> bool:
        """Whether nothing is left of a line that was begun."""
        if self._rest:
            self._rest = self._rest[self._write(self._rest) :]
        return not self._rest

    def _write(self, data: bytes) -> int:
        """How many bytes were taken at once."""
        with contextlib.suppress(OSError):
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            if any(events & select.POLLOUT for _, events in poller.poll(0)):
                return os.write(self._fd, data[: select.PIPE_BUF])  # so much a pipe has room for
        return 0

    def close(self) -> None:
        """Let go of our own descriptor."""
        if self._socket is not None:
            self._socket.close()
        super().close()
