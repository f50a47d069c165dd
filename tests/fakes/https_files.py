"""A real https server over a directory, that can die, hold, lie and redirect when told."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path: str
    range: str | None


@dataclass
class HttpsFiles:
    """The server's orders and memory. Orders are by file name; each cut serves one GET."""

    root: Path
    url: str = ""
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    seen: list[Seen] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)  # die after so many bytes
    holds: dict[str, int] = field(default_factory=dict)  # stop there until `go_on`
    held: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    statuses: dict[tuple[str, str], int] = field(default_factory=dict)  # (method, name)
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    lengths: bool = True
    dead: bool = False  # nothing more is sent

    def gets(self, name: str) -> list[str | None]:
        """The Range of each GET of that file, in order."""
        return [s.range for s in self.seen if s.method == "GET" and s.path.endswith(name)]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        name = path.rpartition("/")[2]
        self.seen.append(Seen(request.method, path, request.headers.get("Range")))
        if (request.method, name) in self.statuses:
            return web.Response(status=self.statuses[request.method, name])
        if name in self.redirects:
            return web.Response(status=302, headers={"Location": self.redirects[name]})
        file = self.root / path.lstrip("/")
        if not file.is_file():
            return web.Response(status=404)
        data = file.read_bytes()
        tag = f'"{file.stat().st_mtime_ns}"'
        start = self._start(request, tag)
        response = web.StreamResponse(status=206 if start is not None else 200)
        response.headers.update(self.headers)
        if self.etags:
            response.headers["ETag"] = tag
        if start is not None:
            if start >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        if self.lengths:
            response.content_length = len(data)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        if request.method == "GET":
            await self._send(request, response, name, data)
        return response

    def _start(self, request: web.Request, tag: str) -> int | None:
        wanted = request.headers.get("Range")
        if wanted is None or not self.ranges:
            return None
        if request.headers.get("If-Range", tag) != tag:
            return None
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    async def _send(
        self, request: web.Request, response: web.StreamResponse, name: str, data: bytes
    ) -> None:
        cuts = self.cuts.get(name)
        cut = cuts.pop(0) if cuts else None
        hold = self.holds.pop(name, None)
        end = len(data) if cut is None else min(cut, len(data))
        for offset in range(0, end, _CHUNK):
            chunk = data[offset : min(offset + _CHUNK, end)]
            if hold is not None and offset >= hold:
                self.held.set()
                await self.go_on.wait()
                hold = None
            if self.dead and request.transport is not None:
                request.transport.abort()
                return
            await response.write(chunk)
            self.sent[name] = self.sent.get(name, 0) + len(chunk)
        if cut is not None and request.transport is not None:
            request.transport.close()  # what was written goes out, then the connection ends


@asynccontextmanager
async def serve_https(
    root: Path, directory: Path, port: int = 0, certificate: Path | None = None
) -> AsyncIterator[HttpsFiles]:
    """A server over `root`; its certificate is made in `directory`, unless it has one."""
    files = HttpsFiles(root)
    certificate = certificate or make_certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    files.trust = ssl.create_default_context(cafile=str(certificate))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", files.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    files.url = f"https://127.0.0.1:{port}"
    try:
        yield files
    finally:
        files.go_on.set()
        await runner.cleanup()


def make_certificate(directory: Path) -> Path:
    """A PEM file with a key and a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "releases")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
