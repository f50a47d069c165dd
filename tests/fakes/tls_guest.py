"""A guest on a real TLS socket that answers as it is told, well or badly."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from agent.model.enclave import Endpoint

BOOT, CONTAINERS, METRICS = (
    f"/.well-known/tinfoil-{name}" for name in ("boot-stages", "containers", "metrics")
)
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Identity:
    """A server's key and self-signed certificate."""

    context: ssl.SSLContext
    spki_sha256: str


@cache
def identity(name: str, *, tls13: bool = True) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not tls13:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    pem = certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pem")
        file.write_bytes(pem)
        context.load_cert_chain(file)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Identity(context, hashlib.sha256(spki).hexdigest())


def reply(status: int, body: bytes, *, close: bool = False) -> bytes:
    """A whole HTTP/1.1 answer."""
    more = "Connection: close\r\n" if close else ""
    head = f"HTTP/1.1 {status} Told\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def says(document: Any, status: int = 200) -> bytes:
    return reply(status, json.dumps(document).encode())


def stage(name: str, status: str = "ok", **more: Any) -> dict[str, Any]:
    return {"name": name, "status": status, "duration_ns": 1, **more}


def booted(*stages: dict[str, Any], completed: str | None = "2026-01-01T00:00:01Z") -> bytes:
    return says(
        {
            "stages": list(stages) or [stage("config"), stage("network", "skipped")],
            "started_at": "2026-01-01T00:00:00Z",
            "completed_at": completed,
        }
    )


def container(name: str = "web", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "status": "running",
        "oom_killed": False,
        "exit_code": 0,
        "health": {"status": "healthy"},
        **changes,
    }


def listed(*containers: dict[str, Any], unavailable: Any = "") -> bytes:
    return says({"containers": list(containers), "unavailable": unavailable})


class TlsGuest:
    """Answers each path with the bytes, or by the script, that stands in `answers`.

    `visits` has one list of paths for each TLS connection, in order; `hosts` the `Host` of each
    request, `names` the name that each TLS client asked for. The next handshakes show `moments`,
    one each, before it shows its own key: a connection keeps that of its handshake, as the public
    image's shim has it (its certificate is looked up at each handshake, its handler at each
    request).
    """

    def __init__(self, who: Identity | None = None) -> None:
        self.identity = who or identity("guest")
        self.answers: dict[str, bytes | Script] = {
            BOOT: booted(),
            CONTAINERS: listed(container()),
            METRICS: says({"cpu_util": 3}),
            "/": says({"version": "1"}),
        }
        self.visits: list[list[str]] = []
        self.hosts: list[str] = []
        self.names: list[str | None] = []
        self.moments: list[Identity] = []
        self.heads: dict[str, bytes] = {}  # of the newest request of each path
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Nobody is connected."""
        return not self._tasks

    def answer(self, path: str, host: str) -> bytes | Script:
        """To one request."""
        return self.answers[path]

    async def start(self, port: int = 0) -> Endpoint:
        self.identity.context.sni_callback = self._choose_key
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", port, ssl=self.identity.context, limit=1 << 20
        )
        address, port = self._server.sockets[0].getsockname()
        return Endpoint(address=address, port=port)

    def _choose_key(
        self, tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext
    ) -> None:
        self.names.append(name)
        if self.moments:
            tls.context = self.moments.pop(0).context

    def stop_listening(self) -> None:
        """Take no new connections; those that there are go on."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        paths: list[str] = []
        self.visits.append(paths)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                paths.append(head.split(b" ", 2)[1].decode())
                self.heads[paths[-1]] = head
                self.hosts.append(_host_of(head))
                answer = self.answer(paths[-1], self.hosts[-1])
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                    if b"\r\nConnection: close\r\n" in answer:
                        return
                else:
                    await answer(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()


def _host_of(head: bytes) -> str:
    lines = head.decode().split("\r\n")
    return next(line[6:] for line in lines if line.startswith("Host: "))


async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.get_running_loop().create_future()


async def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close without an answer."""
    writer.transport.abort()
    raise ConnectionResetError


def endlessly(begin: bytes, more: bytes) -> Script:
    """Send `begin`, then `more` for ever, as fast as it is taken."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(0)  # a TLS writer that was shut drains without ever yielding

    return script
