"""Connects to endpoints without running over a short backlog.

QEMU's user-mode network listens with a backlog of one and drops what comes on top, which costs the
caller a second of the kernel's patience. So a loopback endpoint, where a handshake takes no time,
is dialled one connection at a time, and a handshake that hangs is soon given up and begun again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from agent.model.enclave import Endpoint

DEADLINE_S = 10.0  # from acceptance to connection
_TRIES_S = (0.02, 0.2)  # the first and the longest, on loopback
_AT_ONCE = 16  # elsewhere


class Dialler:
    """Holds the gate of each endpoint. A gate without users is forgotten."""

    def __init__(self) -> None:
        self._gates: dict[Endpoint, tuple[asyncio.Semaphore, int]] = {}

    async def dial(self, endpoint: Endpoint) -> socket.socket:
        """Raise OSError if the endpoint refuses, TimeoutError if it cannot be reached in time."""
        async with asyncio.timeout(DEADLINE_S):
            gate, users = self._gates.get(endpoint, (None, 0))
            if gate is None:
                gate = asyncio.Semaphore(1 if _on_loopback(endpoint) else _AT_ONCE)
            self._gates[endpoint] = (gate, users + 1)
            try:
                async with gate:
                    return await _connect(endpoint)
            finally:
                gate, users = self._gates[endpoint]
                if users == 1:
                    del self._gates[endpoint]
                else:
                    self._gates[endpoint] = (gate, users - 1)


def _on_loopback(endpoint: Endpoint) -> bool:
    return ipaddress.ip_address(endpoint.address).is_loopback


async def _connect(endpoint: Endpoint) -> socket.socket:
    patience_s, longest_s = _TRIES_S if _on_loopback(endpoint) else (DEADLINE_S, DEADLINE_S)
    while True:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.get_running_loop().sock_connect(
                    sock, (endpoint.address, endpoint.port)
                )
        except TimeoutError:
            sock.close()
            patience_s = min(patience_s * 2, longest_s)
        except BaseException:
            sock.close()
            raise
        else:
            return sock
