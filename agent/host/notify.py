"""What the daemon tells the init system: ready, stopping, a status line, still alive.

The protocol is systemd's sd_notify: one datagram of `NAME=value` lines to `$NOTIFY_SOCKET`.
Without that variable, and when nobody listens, nothing happens: the daemon never fails or waits
because of it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping


class Notifier:
    """Speaks to the init system, if there is one that listens."""

    def __init__(
        self, address: str | None = None, watchdog_interval_s: float | None = None
    ) -> None:
        self._address = address
        self.watchdog_interval_s = watchdog_interval_s

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> Notifier:
        """As `$NOTIFY_SOCKET` and, if meant for this pid, `$WATCHDOG_USEC` say.

        `watchdog_interval_s` is half of what the init system waits for; None: no watchdog.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        usec = environ.get("WATCHDOG_USEC", "")
        meant_for_us = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        interval = int(usec) / 2e6 if usec.isascii() and usec.isdigit() and meant_for_us else 0
        # "@name" is an abstract socket; other forms than these (vsock) are not for a host.
        return cls(address if address[:1] in ("/", "@") else None, interval or None)

    def ready(self, status: str) -> bool:
        """Adopted and reconciled."""
        return self._send("READY=1", _status(status))

    def stopping(self, status: str) -> bool:
        return self._send("STOPPING=1", _status(status))

    def status(self, status: str) -> bool:
        return self._send(_status(status))

    def watchdog(self) -> bool:
        """Still alive. Owed at least every `watchdog_interval_s`."""
        return self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> bool:
        """Whether it was handed over."""
        if self._address is None:
            return False
        name = self._address
        address = b"\0" + name[1:].encode() if name.startswith("@") else name.encode()
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
        ):
            sender.sendto("\n".join(lines).encode(), address)
            return True
        return False


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
