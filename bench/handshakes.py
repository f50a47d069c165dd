"""Whole handshakes with both certificates verified, as a process of its own.

    python -m bench.handshakes ask PORT SECONDS AT_ONCE CERTIFICATE KEY CA
    python -m bench.handshakes serve CERTIFICATE KEY CA

One counts once a request over it was answered: in TLS 1.3 a client is done before the server has
seen its certificate. `ask` prints how many a second, `serve` (the least that asyncio can be, to
compare with) its port.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading
import time

from bench.requests import member_context

_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Asking:
    """So many threads, each with one connection at a time."""

    def __init__(self, port: int, context: ssl.SSLContext, seconds: float) -> None:
        self._port = port
        self._context = context
        self._until = time.monotonic() + seconds
        self.answered = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        while time.monotonic() < self._until:
            with (
                self._connect() as sock,
                self._context.wrap_socket(sock) as tls,
            ):
                tls.sendall(_HEALTH)
                if b" 200 " not in tls.recv(4096).split(b"\r\n", 1)[0]:
                    raise SystemExit("not answered 200")
            with self._lock:
                self.answered += 1

    def _connect(self) -> socket.socket:
        """As every client of today: what follows the certificate waits for no acknowledgement."""
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def _ask(port: str, seconds: str, at_once: str, *files: str) -> None:
    began = time.monotonic()
    asking = Asking(int(port), member_context(*files), float(seconds))
    threads = [threading.Thread(target=asking.run) for _ in range(int(at_once))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(asking.answered / (time.monotonic() - began))


class _Bare(asyncio.Protocol):
    """Answers whatever comes first, and ends."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        self._transport.write(_ANSWER)
        self._transport.close()


async def _serve(certificate: str, key: str, ca: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Bare, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "ask":
        _ask(*words)
    else:
        asyncio.run(_serve(*words))
