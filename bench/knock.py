"""A client that knocks at one port again and again, and notes when it was let in and by whom.

    python -m bench.knock SPEC     SPEC: JSON, see `Spec`
    stdin   "tell": a line of JSON, see `Knocks`; end of file: the end
    stdout  the lines

Knocks are sent by the clock, each on a connection of its own, however those before it fare: what
is not there yet answers nothing, and a knock that hangs proves nothing.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time

import msgspec

from bench.requests import REQUEST, Fault, answerer

EVERY_S = 0.05


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Where to knock."""

    address: str
    port: int
    every_s: float = EVERY_S
    timeout_s: float = 1.0


class Knocks(msgspec.Struct, kw_only=True):
    """Moments of the wall clock. `healthy`: who answered 200 → when that was first there."""

    accepted: list[float] = []
    healthy: dict[str, float] = {}


async def _knock(spec: Spec, knocks: Knocks) -> None:
    loop = asyncio.get_running_loop()
    answer = bytearray()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            async with asyncio.timeout(spec.timeout_s):
                await loop.sock_connect(sock, (spec.address, spec.port))
                knocks.accepted.append(time.time())
                await loop.sock_sendall(sock, REQUEST)
                while piece := await loop.sock_recv(sock, 65536):
                    answer += piece
        knocks.healthy.setdefault(answerer(bytes(answer)), time.time())
    except (OSError, TimeoutError, Fault):
        return


async def _knock_on(spec: Spec, knocks: Knocks) -> None:
    due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(_knock(spec, knocks))
            due = max(due + spec.every_s, time.monotonic())  # none are made up for
            await asyncio.sleep(due - time.monotonic())


async def _main(spec: Spec) -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    knocks = Knocks()

    knocking = asyncio.create_task(_knock_on(spec, knocks))
    while await commands.readline() and not knocking.done():
        sys.stdout.write(msgspec.json.encode(knocks).decode() + "\n")
        sys.stdout.flush()
    if knocking.done():
        await knocking  # it never ends by itself: this tells why it did


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Spec)))
