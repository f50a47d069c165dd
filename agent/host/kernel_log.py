"""The kernel's log from now on: /dev/kmsg, a record a read, told as it comes.

Reading takes nothing from anybody else. Records that the kernel has overwritten before they were
read are lost; whoever wants certainty looks at the thing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from agent.errors import describe
from agent.host.units import Borrow, LendError

KMSG = Path("/dev/kmsg")
_RECORD_BYTES = 8192  # longer ones are cut by the kernel
_AT_ONCE = 64  # a storm of messages must not hold the event loop

log = logging.getLogger(__name__)


class KernelLog:
    """Tells each record to `hear`, on the event loop. Where it may not be read nothing is told.

    `borrow`: who opens it for us where our own unit is closed to it.
    """

    def __init__(
        self, hear: Callable[[bytes], None], path: Path = KMSG, borrow: Borrow | None = None
    ) -> None:
        self._hear = hear
        self._path = path
        self._borrow = borrow
        self._fd: int | None = None

    async def start(self) -> None:
        """Begin with what comes next. Logs why, if it cannot."""
        try:
            fd = await self._open()
        except (OSError, LendError) as error:
            pairs = {"path": str(self._path), "error": describe(error)}
            log.info("kernel log cannot be read", extra=pairs)
            return
        with contextlib.suppress(OSError):  # a pipe has no end to go to
            os.lseek(fd, 0, os.SEEK_END)
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._read)

    async def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            if self._borrow is None:
                raise
            return await self._borrow("read", str(self._path))

    def _read(self) -> None:
        assert self._fd is not None
        for _ in range(_AT_ONCE):
            try:
                record = os.read(self._fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten: the next read is of what is there
                    continue
                log.warning("kernel log failed", extra={"error": error.strerror})
                self.close()
                return
            if not record:
                self.close()
                return
            self._hear(record)

    def close(self) -> None:
        """No record is told any more."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
