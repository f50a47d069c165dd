"""Which address of this host the coordinator would see."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

_HTTPS = 443


async def address_towards(url: str) -> str | None:
    """Ours on the way to a URL's host, as the kernel would route it now; None if there is none.

    Connecting a datagram socket sends nothing.
    """
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            parts.hostname, parts.port or _HTTPS, type=socket.SOCK_DGRAM
        )
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(address)
            return str(sock.getsockname()[0])
    except OSError:
        return None
