"""One listening socket, which is ours also while it refuses.

Refusing is left to the kernel, so that a client sees exactly what an unserved port gives it:
`shutdown` takes a listening socket back to the bound state, in which the kernel answers a SYN with
a reset. Without SO_REUSEADDR no other process can bind the port meanwhile, nor before it listens
again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from agent.model.enclave import Endpoint
from agent.model.resources import Listen

_BACKLOG = 4096
_AT_ONCE = 128  # accepted per turn of the event loop
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # <linux/in.h>, <linux/in6.h>
_OUT_OF_FILES_S = 0.2
_TRANSIENT = frozenset({errno.ECONNABORTED, errno.EPERM, errno.EPROTO})
Accepted = Callable[[socket.socket, Endpoint, str], None]  # the address that it came from


class ProxyListener:
    """Opening it binds the port, or raises OSError. It refuses until it has targets."""

    def __init__(self, listen: Listen, accepted: Accepted) -> None:
        self.listen = listen
        self._accepted = accepted
        self._targets: tuple[Endpoint, ...] = ()
        self._next = 0
        self._retry: asyncio.TimerHandle | None = None
        self._socket = _held(listen)

    def prepare(self) -> None:
        """Let the kernel take connections, for a `serve` to follow. Raises OSError. Idempotent."""
        if not self._targets:
            # Connections that live on from an earlier time hold the port too, with this option.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.listen(_BACKLOG)

    def unprepare(self) -> None:
        """The `serve` does not follow."""
        if not self._targets:
            _hold(self._socket)

    def serve(self, targets: tuple[Endpoint, ...]) -> None:
        """Send connections accepted from now on to these, in turn; none means: refuse."""
        if self._targets:
            self._accept_waiting()
        if targets and not self._targets:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept_some)
        elif self._targets and not targets:
            self._stop_reading()
            _hold(self._socket)
        self._targets = targets

    def close(self) -> None:
        """Connections that the kernel has already taken are still served."""
        if self._targets:
            self._accept_waiting()
        self._stop_reading()
        self._socket.close()

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _accept_waiting(self) -> None:
        while self._accept_some() == _AT_ONCE:
            pass

    def _accept_some(self) -> int:
        """Accept what waits, up to a bound; each goes to the target in force at this moment."""
        for count in range(_AT_ONCE):
            try:
                client, (source, *_) = self._socket.accept()
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    self._pause()
                    return count
                continue
            client.setblocking(False)
            target = self._targets[self._next % len(self._targets)]
            self._next += 1
            self._accepted(client, target, source)
        return _AT_ONCE

    def _pause(self) -> None:
        """Out of file descriptors or memory: what waits is let wait, not spun upon."""
        self._stop_reading()
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(_OUT_OF_FILES_S, self._resume)

    def _resume(self) -> None:
        self._retry = None
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept_some)


def _held(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if listen.is_ipv6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # An address that comes and goes is waited for: the kernel delivers what is for this host.
        if listen.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((listen.address, listen.port))
        _hold(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _hold(sock: socket.socket) -> None:
    """Bound, not listening, and shared with nobody."""
    # Listening makes the kernel look at the option again, which it would else remember as set.
    sock.listen(1)
    sock.shutdown(socket.SHUT_RD)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
