"""Resets clients that HAProxy itself can only close.

HAProxy ends a session with a FIN, and a client that waits for an answer may take that for its end.
So the client's own socket is borrowed from the process (pidfd_getfd) and disconnected: the kernel
sends a RST at once, and HAProxy finds its client gone. Where the kernel does not lend sockets
(another user's process, Yama), HAProxy's own closing is all that the client sees.

It is also a program, run by its path, without the package: PID, and the sessions as JSON on stdin.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_PIDFD_GETFD = 438  # the same on every architecture
_AF_UNSPEC = bytes(16)


class ClientSession(NamedTuple):
    """A client by its address, and HAProxy's descriptor for it."""

    source: str
    fd: int


def reset(pid: int, sessions: Iterable[ClientSession]) -> None:
    """Disconnect them, as far as the kernel lets us. A descriptor that has changed is let be."""
    import ctypes  # only where there is something to be reset

    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(ProcessLookupError), _descriptor(os.pidfd_open(pid)) as pidfd:
        for session in sessions:
            borrowed = libc.syscall(_PIDFD_GETFD, pidfd, session.fd, 0) if session.fd > 2 else -1
            if borrowed < 0:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=borrowed) as client:
                if _is(client, session.source):
                    libc.connect(borrowed, _AF_UNSPEC, len(_AF_UNSPEC))


@contextlib.contextmanager
def _descriptor(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)


def _is(client: socket.socket, source: str) -> bool:
    import ipaddress

    host, _, port = source.rpartition(":")
    peer = client.getpeername()
    if not isinstance(peer, tuple) or len(peer) < 2:
        return False
    wanted = ipaddress.ip_address(host.strip("[]")), int(port)
    return (ipaddress.ip_address(peer[0]), peer[1]) == wanted


if __name__ == "__main__":
    reset(int(sys.argv[1]), [ClientSession(*one) for one in json.load(sys.stdin)])
