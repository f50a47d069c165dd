"""Peers of ill will, in numbers: each kind a coroutine that says how many tried and were refused.

They come from addresses of their own, as they would: who floods the door pushes out what comes
from his address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.door.limits import Limits
from agent.pki.names import coordinator_uri
from tests.api_bodies import LEADING_ELSEWHERE, READ_IN_TWO_WAYS, elsewhere, smuggling
from tests.fakes.fleet import DOMAIN, RESET, Member, Pki, bytes_for

HEAD_S = Limits().head_s
FLOOD, STRANGERS, MEMBERS, LORISES = (f"127.0.0.{n}" for n in (9, 10, 11, 12))
MANY, SOME = 25, 4
HALF_OPEN, KEPT_HALF_OPEN, LET_GO_WITHIN_S = 5000, 500, 15.0
LORIS, LORIS_EVERY_S, LORIS_UNTIL_S = 40, 0.5, 20.0
BODY_BYTES = 100 << 20
_HEAD = b"Host: a\r\nCoordinator-Epoch: 1\r\nContent-Type: application/json\r\n"
_GET = b"GET /v1/deployments HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Figure:
    """`refused` of `tried`; `note` says how."""

    what: str
    tried: int
    refused: int
    note: str = ""

    def __str__(self) -> str:
        return f"{self.what:32} {self.tried:5} tried {self.refused:5} refused  {self.note}"


@dataclass
class Hostile:
    """`pki`: of the fleet; `foreign`: another with the same names."""

    port: int
    pki: Pki
    foreign: Pki
    revoked: Member = field(init=False)

    async def revoke_one(self) -> None:
        """Beforehand: whoever is at the door when certificates change has to come again."""
        self.revoked = self.pki.coordinator()
        self.pki.revoke(self.revoked)
        await asyncio.sleep(2.5)  # files are looked at every second

    async def say(
        self, context: ssl.SSLContext | None, data: bytes, come_from: str = MEMBERS
    ) -> bytes:
        return await bytes_for(context, data, self.port, come_from)

    async def nobodies(self) -> list[Figure]:
        """Who gets no byte of HTTP, whatever is asked."""
        good, pki = coordinator_uri(DOMAIN), self.pki
        old = pki.context(pki.coordinator())
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        contexts = {
            "no certificate": pki.context(None),
            "foreign authority": pki.context(self.foreign.coordinator()),
            "expired": pki.context(pki.coordinator(days=-0.1)),
            "revoked": pki.context(self.revoked),
            "right authority, another name": pki.context(pki.member(f"{good}/replica")),
            "right authority, a host": pki.context(pki.host("other")),
            "right authority, no name": pki.context(pki.member(None)),
            "TLS 1.2": old,
            "plain HTTP": None,
        }
        figures = []
        for what, context in contexts.items():
            got = [await self.say(context, _GET, STRANGERS) for _ in range(MANY)]
            figures.append(Figure(what, MANY, got.count(b""), "not a byte"))
        return figures

    async def observers_that_write(self) -> list[Figure]:
        context = self.pki.context(self.pki.observer())
        asked = [
            await self.say(
                context, b"POST /v1/host/drain HTTP/1.1\r\nConnection: close\r\n" + _HEAD + b"\r\n"
            )
            for _ in range(MANY)
        ]
        return [Figure("observer that writes", MANY, _with(asked, (b"403",)), "403")]

    async def smugglers(self) -> list[Figure]:
        context = self.pki.context(self.pki.coordinator())
        got = [
            await self.say(context, smuggling(h)) for h in READ_IN_TWO_WAYS for _ in range(SOME)
        ]
        refused = sum(one.count(b"HTTP/1.") == 1 and one.split()[1][:1] == b"4" for one in got)
        return [Figure("header smuggling", len(got), refused, "one answer, 4xx")]

    async def wanderers(self) -> list[Figure]:
        context = self.pki.context(self.pki.coordinator())
        got = [
            await self.say(context, elsewhere(n)) for n in LEADING_ELSEWHERE for _ in range(SOME)
        ]
        return [Figure("names that lead elsewhere", len(got), _with(got, (b"400", b"404")), "4xx")]

    async def replayers(self) -> list[Figure]:
        """A request that was overheard, told again; and its key with another body."""
        context = self.pki.context(self.pki.coordinator())

        def put(tag: str) -> bytes:
            body = json.dumps({"tag": tag, "listen": "127.0.0.1:1"}).encode()
            return (
                b"PUT /v1/deployments/hello HTTP/1.1\r\nIdempotency-Key: replayed\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), _HEAD, body)
            )

        first = await self.say(context, put("v8"))
        same = [await self.say(context, put("v8")) for _ in range(MANY)]
        other = [await self.say(context, put("v9")) for _ in range(MANY)]
        status = first.split()[1]
        replayed = sum(b"Idempotent-Replayed: true" in one for one in same)
        return [
            Figure("replayed keys", MANY, min(replayed, _with(same, (status,))), "kept answer"),
            Figure("replayed keys, another body", MANY, _with(other, (b"422",)), "422"),
        ]

    async def bodies(self) -> list[Figure]:
        """Announced, and not: the second kind is cut off once it is too long."""
        context = self.pki.context(self.pki.coordinator())
        told = b"PUT /v1/deployments/x HTTP/1.1\r\nContent-Length: %d\r\n%s\r\n"
        announced = await asyncio.gather(
            *(self.say(context, told % (BODY_BYTES, _HEAD)) for _ in range(SOME))
        )
        streamed = [await self._stream(context) for _ in range(2)]
        took = max(took for _, took in streamed)
        return [
            Figure("100 MB body, announced", SOME, _with(announced, (b"413",)), "413"),
            Figure(
                "100 MB body, in chunks",
                len(streamed),
                sum(b"413" in answer[:20] or not answer for answer, _ in streamed),
                f"after {took / (1 << 20):.1f} MiB at most",
            ),
        ]

    async def _stream(self, context: ssl.SSLContext) -> tuple[bytes, int]:
        """The answer, and how much was taken."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, local_addr=(MEMBERS, 0)
        )
        taken, piece = 0, bytes(1 << 16)
        answer = asyncio.create_task(reader.read(4096))
        with contextlib.suppress(*RESET):
            writer.write(
                b"PUT /v1/deployments/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
                + _HEAD
                + b"\r\n"
            )
            while taken < BODY_BYTES and not answer.done():
                writer.write(b"10000\r\n" + piece + b"\r\n")
                await writer.drain()
                taken += len(piece)
        writer.transport.abort()
        got = b""
        with contextlib.suppress(*RESET):
            got = await answer
        return got, taken

    async def lorises(self) -> list[Figure]:
        """A byte of the head now and then."""
        context = self.pki.context(self.pki.observer())
        door = asyncio.Semaphore(4)
        lasted = await asyncio.gather(*(self._loris(context, door) for _ in range(LORIS)))
        refused = sum(HEAD_S - 1 < one < LORIS_UNTIL_S for one in lasted)
        return [Figure("slow loris", LORIS, refused, f"after {max(lasted):.1f} s at most")]

    async def _loris(self, context: ssl.SSLContext, door: asyncio.Semaphore) -> float:
        """How long it was borne, once it was in."""
        began = time.monotonic()
        with contextlib.suppress(*RESET):
            async with door:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.port, ssl=context, local_addr=(LORISES, 0)
                )
            began = time.monotonic()
            gone = asyncio.create_task(reader.read(1))
            head = iter(b"GET /status HTTP/1.1\r\nX-Slow: " + b"a" * 100)
            while not gone.done() and time.monotonic() - began < LORIS_UNTIL_S:
                writer.write(bytes([next(head)]))
                await asyncio.wait([gone], timeout=LORIS_EVERY_S)
            writer.transport.abort()
            await asyncio.gather(gone, return_exceptions=True)
        return time.monotonic() - began

    async def half_open(self) -> list[Figure]:
        """Silent, stalled in their hello, or after it; each as long as 500 newer ones."""
        hellos = (b"", b"\x16\x03\x01\x02\x00\x01", whole_hello())
        loop = asyncio.get_running_loop()
        socks: deque[socket.socket] = deque()
        refused = 0
        for n in range(HALF_OPEN):
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind((FLOOD, 0))
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, hellos[n % 3])
            socks.append(sock)
            if len(socks) > KEPT_HALF_OPEN:
                refused += await _let_go(socks.popleft())
        refused += sum([await _let_go(sock) for sock in socks])
        return [Figure("half-open handshakes", HALF_OPEN, refused, "put out")]


def whole_hello() -> bytes:
    """What a client of TLS 1.3 says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


async def _let_go(sock: socket.socket) -> bool:
    """Whether the other end ends it in time."""
    deadline = time.monotonic() + LET_GO_WITHIN_S
    with sock:
        while time.monotonic() < deadline:
            try:
                if not sock.recv(4096):
                    return True
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except OSError:
                return True
    return False


def _with(answers: Iterable[bytes], statuses: tuple[bytes, ...]) -> int:
    return sum(
        one.split(None, 2)[1:2] != [] and one.split(None, 2)[1] in statuses for one in answers
    )
