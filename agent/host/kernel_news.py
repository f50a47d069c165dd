"""Hears from the kernel (rtnetlink) that links, addresses or routes changed, by whomever.

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

NETWORKS = 1 << 0 | 1 << 4 | 1 << 6  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
_SETTLE_S = 0.2  # what comes in one go is looked at once
_MOST_BYTES = 1 << 16


class KernelNews:
    """Of the groups given. Needs a running event loop. To be asked by one task."""

    def __init__(self, groups: int, *, at_the_latest_s: float = 60.0) -> None:
        self._groups = groups
        self._at_the_latest_s = at_the_latest_s

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, self._groups))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    async def changed(self) -> None:
        """Return soon after something changed, at the latest after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._at_the_latest_s):
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
