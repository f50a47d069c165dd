"""A stand-in for a guest: a TCP server as a process, in a network namespace of its own if told so.

argv: NAME ADDRESS [netns] PORT... It says "here" on stdout (in its namespace), waits for a line if
it has a namespace of its own (so that the test can give it an interface), then listens, says
"ready" and serves lines:
    who       NAME and the client's address
    bulk N    N bytes
    count     everything up to the client's end, then how many bytes those were, then closes
    hang      says so and neither reads nor closes any more
    bye       says so and closes
    anything else comes back
"""

from __future__ import annotations

import asyncio
import ctypes
import sys

CLONE_NEWNET = 0x40000000


async def serve(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    client = writer.get_extra_info("peername")[0]
    while line := await reader.readline():
        match line.decode(errors="replace").split():
            case ["who"]:
                writer.write(f"{name} {client}\n".encode())
            case ["bulk", size]:
                for _ in range(int(size) // 65536):
                    writer.write(b"x" * 65536)
                    await writer.drain()
                writer.write(b"x" * (int(size) % 65536))
            case ["count"]:
                size = 0
                while data := await reader.read(65536):
                    size += len(data)
                writer.write(f"{size}\n".encode())
            case ["hang"]:
                writer.write(b"hanging\n")
                writer.transport.pause_reading()
                await asyncio.sleep(3600)
            case ["bye"]:
                writer.write(line)
                await writer.drain()
                return
            case _:
                writer.write(line)
        await writer.drain()


async def main(name: str, address: str, ports: list[str]) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(name, reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    for port in ports:
        await asyncio.start_server(handle, address, int(port), backlog=1024)
    print("ready", flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    name, address, *rest = sys.argv[1:]
    if rest[0] == "netns" and ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    print("here", flush=True)
    if rest[0] == "netns":
        sys.stdin.readline()
        rest = rest[1:]
    asyncio.run(main(name, address, rest))
