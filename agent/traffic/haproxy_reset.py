"""Resets clients that HAProxy itself can only close.

Those over whose connections nothing is under way, as the kernel tells of the socket, are left to
that. HAProxy ends a session with a FIN, and a client that waits for an answer may take that for
its end. So the client's own socket is borrowed from the process (pidfd_getfd) and disconnected:
the kernel sends a RST at once, and HAProxy finds its client gone. Where the kernel does not lend
sockets (another user's process, Yama), HAProxy's own closing is all that the client sees.

It is also a program, run by its path, without the package: PID, and the sessions as JSON on stdin;
it prints what `reset` returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_PIDFD_GETFD = 438  # the same on every architecture
_AF_UNSPEC = bytes(16)
_QUIET_MS = 1000  # without a byte either way, before nothing counts as under way
_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2 = 1, 4, 5
# struct tcp_info of <linux/tcp.h>: state; unacknowledged; ms since data was sent, and received;
# bytes not sent yet; segments with data in and out.
_TCP_INFO = struct.Struct("=B 23x I 16x I 4x I 88x I 4x I I")


class ClientSession(NamedTuple):
    """A client by its address, and HAProxy's descriptor for it."""

    source: str
    fd: int


def reset(pid: int, sessions: Iterable[ClientSession]) -> int:
    """Disconnect them, as far as the kernel lets us. A descriptor that has changed is let be.

    Returns over how many nothing was under way: HAProxy's own closing is their end in order.
    """
    import ctypes  # only where there is something to be reset

    libc = ctypes.CDLL(None, use_errno=True)
    at_rest = 0
    with contextlib.suppress(ProcessLookupError), _descriptor(os.pidfd_open(pid)) as pidfd:
        for session in sessions:
            borrowed = libc.syscall(_PIDFD_GETFD, pidfd, session.fd, 0) if session.fd > 2 else -1
            if borrowed < 0:
                continue
            with contextlib.suppress(OSError), socket.socket(fileno=borrowed) as client:
                if not _is(client, session.source):
                    continue
                if _is_at_rest(client):
                    at_rest += 1
                else:
                    libc.connect(borrowed, _AF_UNSPEC, len(_AF_UNSPEC))
    return at_rest


def _is_at_rest(client: socket.socket) -> bool:
    """Whether the guest has hung up, or both are silent and the client waits for no answer.

    Times are those of the kernel's clock ticks: who spoke last is not known within one.
    """
    told = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    if len(told) < _TCP_INFO.size:
        return False
    state, unacked, sent_ms, heard_ms, unsent, heard, said = _TCP_INFO.unpack(told)
    if state in (_FIN_WAIT1, _FIN_WAIT2):
        return True
    waits = heard > 0 and (said == 0 or heard_ms < sent_ms)
    quiet = min(sent_ms, heard_ms) >= _QUIET_MS and not unacked and not unsent
    return state == _ESTABLISHED and quiet and not waits


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
    found = reset(int(sys.argv[1]), [ClientSession(*one) for one in json.load(sys.stdin)])
    sys.stdout.write(str(found))
