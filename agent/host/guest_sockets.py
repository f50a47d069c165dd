"""The sockets over which the agent itself speaks with guests: probes, evidence, metrics.

Invariant: what is asked of an enclave's address is answered by whoever has that address on the
guests' network, or by nobody. A socket leaves by the guests' bridge alone and hears from nowhere
else, whatever routes and addresses the host has; and it carries a mark on which our packet filter
lets it pass untouched, whatever listens at that address. Guests whose network is in QEMU's process
are reached at loopback addresses, where there is nothing to be marked.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from agent.model.enclave import Endpoint
from agent.model.marks import TO_GUEST


@dataclass(frozen=True, slots=True)
class GuestSockets:
    """`bridge`: the guests' link; None where guests have none. Marking needs CAP_NET_ADMIN."""

    bridge: str | None = None

    async def connect(self, endpoint: Endpoint) -> socket.socket:
        """A connected socket that the caller closes. Raises OSError."""
        family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if self.bridge is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TO_GUEST)
                bridge = self.bridge.encode()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge)
            to = (endpoint.address, endpoint.port)
            await asyncio.get_running_loop().sock_connect(sock, to)
        except BaseException:
            sock.close()
            raise
        return sock


UNMARKED = GuestSockets()
