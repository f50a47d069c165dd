"""A native server, and a client that measures the way to it; each a process of its own.

    python -m bench.native serve   says "ready", serves on every address until killed
    python -m bench.native ask     answers each line ROLE ADDRESS PORT SECONDS by a line

Roles: `bulk`, bits/s read from the server on one connection, its first moment left out; `turns`,
the median of a round trip in seconds; `connects`, connections/s with 16 under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

BULK, TURNS, CONNECTS = 9001, 9002, 9003
_BLOCK = 256 << 10
_AT_ONCE = 16
_WARM_S = 0.1
_ASKED = b"x" * 64


def _serve() -> None:
    """A thread a listener, a thread a connection; short connections are served in their own."""
    for port, handle in ((BULK, _pour), (TURNS, _return)):
        listener = socket.create_server(("", port))
        threading.Thread(target=_accept, args=(listener, handle), daemon=True).start()
    listener = socket.create_server(("", CONNECTS), backlog=512)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        _once(listener.accept()[0])


def _accept(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    while True:
        threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()


def _pour(sock: socket.socket) -> None:
    block = bytes(_BLOCK)
    with sock, contextlib.suppress(OSError):
        while True:
            sock.sendall(block)


def _return(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock, contextlib.suppress(OSError):
        while data := sock.recv(4096):
            sock.sendall(data)


def _once(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        sock.sendall(sock.recv(4096))


def _bulk(where: tuple[str, int], seconds: float) -> float:
    buffer, total = bytearray(_BLOCK), 0
    with socket.create_connection(where, 5) as sock:
        warm = time.perf_counter() + _WARM_S
        while (began := time.perf_counter()) < warm:
            sock.recv_into(buffer)
        while (elapsed := time.perf_counter() - began) < seconds:
            total += sock.recv_into(buffer)
    return 8 * total / elapsed


def _turns(where: tuple[str, int], seconds: float) -> float:
    took = []
    with socket.create_connection(where, 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends:
            sock.sendall(_ASKED)
            sock.recv(4096)
            took.append(time.perf_counter() - began)
    return statistics.median(took)


async def _connects(where: tuple[str, int], seconds: float) -> float:
    loop, done = asyncio.get_running_loop(), 0
    began = time.perf_counter()

    async def go_on() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                await loop.sock_connect(sock, where)
                await loop.sock_sendall(sock, _ASKED)
                while await loop.sock_recv(sock, 4096):
                    pass
            done += 1

    await asyncio.gather(*(go_on() for _ in range(_AT_ONCE)))
    return done / (time.perf_counter() - began)


def _ask(role: str, where: tuple[str, int], seconds: float) -> float:
    match role:
        case "bulk":
            return _bulk(where, seconds)
        case "turns":
            return _turns(where, seconds)
        case _:
            return asyncio.run(_connects(where, seconds))


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        _serve()
    for line in sys.stdin:
        role, address, port, seconds = line.split()
        try:
            answer = repr(_ask(role, (address, int(port)), float(seconds)))
        except OSError as error:
            answer = f"{role} {address} {port}: {error}"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
