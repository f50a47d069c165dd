"""Attacks one listener of an agent in one way, as a process of its own.

    python -m bench.hostile SPEC     SPEC: JSON, see `Spec`
    stdin   end of file: the end

Connections that the agent ends are made anew at once, as an attacker would.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from bench import tls_records
from bench.requests import member_context

_RESET = (OSError, ssl.SSLError, asyncio.IncompleteReadError)
_HOST = b"Host: localhost\r\n"
_FIELD = b"X-Filler: " + b"a" * 7900 + b"\r\n"
_DRIP_S = 0.5
_AGAIN_S = 0.01
_HELLO = b"\x16\x03\x01\x02\x00\x01"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """`path` of a unix socket, or `port` of loopback; `member`: certificate, key and authority, to
    be let in over TLS. `large`: a path whose answer is large.
    """

    kind: str
    path: str | None = None
    port: int = 0
    member: tuple[str, str, str] | None = None
    connections: int = 300
    large: str = "/openapi.json"


Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Streams: TypeAlias = tuple[Reader, Writer]
Attack: TypeAlias = Callable[[Spec, Reader, Writer], Awaitable[None]]


async def _silent(spec: Spec, reader: Reader, writer: Writer) -> None:
    await reader.read()


async def _slow_head(spec: Spec, reader: Reader, writer: Writer) -> None:
    for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def _endless_head(spec: Spec, reader: Reader, writer: Writer) -> None:
    writer.write(b"GET / HTTP/1.1\r\n" + _HOST + _FIELD * 7)
    await reader.read()


async def _slow_body(spec: Spec, reader: Reader, writer: Writer) -> None:
    writer.write(b"POST /v1/plan HTTP/1.1\r\n" + _HOST + b"Coordinator-Epoch: 1\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n")
    writer.write(b" " * 1_900_000)
    await reader.read()


async def _pipelined(spec: Spec, reader: Reader, writer: Writer) -> None:
    while True:
        writer.write((b"GET /healthz HTTP/1.1\r\n" + _HOST + b"\r\n") * 100)
        await writer.drain()
        if not await reader.read(1 << 16):
            return


async def _unread(spec: Spec, reader: Reader, writer: Writer) -> None:
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    while not writer.is_closing():
        writer.write(f"GET {spec.large} HTTP/1.1\r\n".encode() + _HOST + b"\r\n")
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def _churn(spec: Spec, reader: Reader, writer: Writer) -> None:
    await asyncio.sleep(0)


async def _rubbish(spec: Spec, reader: Reader, writer: Writer) -> None:
    writer.write(b"\x16\x03\x01\x02\r\n\r\n" * 10)
    await reader.read()


async def _half_hello(spec: Spec, reader: Reader, writer: Writer) -> None:
    writer.write(_HELLO)
    await reader.read()


PLAIN: dict[str, Attack] = {
    "silent": _silent,
    "slow_head": _slow_head,
    "endless_head": _endless_head,
    "slow_body": _slow_body,
    "pipelined": _pipelined,
    "unread": _unread,
    "churn": _churn,
    "rubbish": _rubbish,
}
AT_THE_TLS_DOOR: dict[str, Attack] = {"half_hello": _half_hello, "silent_door": _silent}
KEY_UPDATES = "key_updates"


async def _open(spec: Spec) -> Streams:
    if spec.path is not None:
        return await asyncio.open_unix_connection(spec.path)
    inside = spec.member is not None and spec.kind not in AT_THE_TLS_DOOR
    tls = member_context(*spec.member) if inside and spec.member else None
    return await asyncio.open_connection("127.0.0.1", spec.port, ssl=tls)


async def _one(spec: Spec) -> None:
    """One place of the attack, taken again and again."""
    attack = (PLAIN | AT_THE_TLS_DOOR)[spec.kind]
    while True:
        with contextlib.suppress(*_RESET):
            reader, writer = await _open(spec)
            try:
                await attack(spec, reader, writer)
            finally:
                writer.transport.abort()
        await asyncio.sleep(_AGAIN_S)


async def _key_updates(spec: Spec) -> None:
    assert spec.member is not None
    while True:
        with contextlib.suppress(*_RESET):
            context = member_context(*spec.member)
            reader, writer, records = await tls_records.connect(context, "127.0.0.1", spec.port)
            try:
                while not reader.at_eof():
                    writer.write(b"".join(records.key_update(answer=True) for _ in range(50)))
                    await writer.drain()
            finally:
                writer.transport.abort()
        await asyncio.sleep(_AGAIN_S)


async def _main(spec: Spec) -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    if spec.kind == KEY_UPDATES:
        places = [asyncio.create_task(_key_updates(spec)) for _ in range(8)]
    else:
        places = [asyncio.create_task(_one(spec)) for _ in range(spec.connections)]
    ending = asyncio.create_task(commands.read())
    await asyncio.wait([ending, *places], return_when=asyncio.FIRST_COMPLETED)
    for place in places:
        place.cancel()
    for ended in await asyncio.gather(*places, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Spec)))
