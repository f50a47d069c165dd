"""Accepts connections, as long as enough descriptors are left for the agent's own work.

A VM is started, a store written and a guest probed with descriptors; those are never spent on
whoever connects. Below the reserve nothing is accepted: who waits, waits in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from agent.host.paced_log import PacedLog

_log = PacedLog(logging.getLogger(__name__))
_RESERVE = 128
_TRY_AGAIN_S = 0.1
_AT_ONCE = 16  # then others have their turn
# What happened to that one connection before it was accepted (accept(2)); the next may be well.
_OF_THAT_ONE = {
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
    *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
}

Take = Callable[[socket.socket, Any], None]


def descriptors_left(reserve: int = _RESERVE) -> bool:
    """Whether more than the reserve (at most a quarter of all) could still be opened.

    The kernel gives the lowest number that is free: every one below it is taken.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(lowest)
    return soft == resource.RLIM_INFINITY or lowest < soft - min(reserve, soft // 4)


async def accept_for_ever(
    listening: socket.socket, take: Take, left: Callable[[], bool] = descriptors_left
) -> None:
    """Give each connection to `take`, which must not raise and owns the socket from then on."""
    loop = asyncio.get_running_loop()
    while True:
        await _readable(loop, listening)
        for _ in range(_AT_ONCE):
            if not left():
                _log.warning("no connection is accepted: too few descriptors are left")
                await asyncio.sleep(_TRY_AGAIN_S)
                break
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno in _OF_THAT_ONE:
                    continue
                _log.warning("no connection is accepted: %s", os.strerror(error.errno or 0))
                await asyncio.sleep(_TRY_AGAIN_S)
                break
            sock.setblocking(False)
            take(sock, address)
        await asyncio.sleep(0)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = loop.create_future()

    def come() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), come)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())
