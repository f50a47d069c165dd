"""Hears from the kernel (rtnetlink) that filters of links were changed, by whomever.

What is told is that something changed, not what: whoever listens looks for itself. A message that
was lost because too many came counts as news, too. So does a while of silence, in case the kernel
could not tell at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from types import TracebackType
from typing import Self

_GROUP_TC = 1 << 3  # RTMGRP_TC
_SETTLE_S = 0.2  # what comes in one go is looked at once
_AT_THE_LATEST_S = 60.0
_MOST_BYTES = 1 << 16


class FilterNews:
    """Needs a running event loop. To be asked by one task."""

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUP_TC))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    async def changed(self) -> None:
        """Return soon after something changed, at the latest after a minute."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AT_THE_LATEST_S):
                await self._one()
                await asyncio.sleep(_SETTLE_S)
        self._forget()

    async def _one(self) -> None:
        try:
            await asyncio.get_running_loop().sock_recv(self._socket, _MOST_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise

    def _forget(self) -> None:
        """What is waiting was told by the look that follows."""
        while True:
            try:
                self._socket.recv(_MOST_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
