"""An installation of GitHub as far as releases go, over a directory of releases.

Form: a download is a redirect to another host, whose signed address takes GET alone and no token
(docs.github.com: "Release assets"; what github.com and its asset hosts answer); a private
repository is 404 for who has no token; the API lies under `/api/v3` (GitHub Enterprise).
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from tests.fakes.https_files import make_certificate


@dataclass
class Github:
    """`root`: OWNER/NAME/TAG/FILE. `seen`: (which host, method, path, status) in order."""

    root: Path
    host: str = ""
    assets: str = ""
    certificate: Path = Path()
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    private: set[str] = field(default_factory=set)
    token: str = "right"
    bundles: dict[str, object] = field(default_factory=dict)  # by the manifest's digest
    busy: bool = False
    seen: list[tuple[str, str, str, int]] = field(default_factory=list)

    @property
    def source(self) -> str:
        return f"github:{self.host}"

    @web.middleware
    async def noted(self, request: web.Request, handler: object) -> web.StreamResponse:
        try:
            response = await handler(request)  # type: ignore[operator]
        except web.HTTPException as error:
            response = web.Response(status=error.status)
        which = "assets" if request.host == self.assets else "web"
        self.seen.append((which, request.method, request.path, response.status))
        return response

    async def download(self, request: web.Request) -> web.Response:
        if request.host != self.host:
            return web.Response(status=404)
        if self.busy:
            return web.Response(status=429, headers={"Retry-After": "60"})
        owner, name, tag, file = (request.match_info[one] for one in ("o", "n", "t", "f"))
        if not self._may(request, f"{owner}/{name}") or not self._file(owner, name, tag, file):
            return web.Response(status=404)
        where = f"https://{self.assets}/signed/{owner}/{name}/{tag}/{file}?sig=1"
        return web.Response(status=302, headers={"Location": where})

    async def asset(self, request: web.Request) -> web.Response:
        if request.host != self.assets or request.query.get("sig") != "1":
            return web.Response(status=404)
        if "Authorization" in request.headers:
            return web.Response(status=400)  # only one way to be let in
        if request.method != "GET":
            return web.Response(status=403)  # it is signed for GET
        owner, name, tag, file = (request.match_info[one] for one in ("o", "n", "t", "f"))
        found = self._file(owner, name, tag, file)
        if found is None:
            return web.Response(status=404)
        data = found.read_bytes()
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        wanted = request.headers.get("Range", "")
        headers = {"ETag": etag}
        if wanted and request.headers.get("If-Range", etag) == etag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            piece = data[int(first) : int(last) + 1 if last else None]
            end = int(first) + len(piece) - 1
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            return web.Response(status=206, body=piece, headers=headers)
        return web.Response(body=data, headers=headers)

    async def attestations(self, request: web.Request) -> web.Response:
        bundle = self.bundles.get(request.match_info["digest"].removeprefix("sha256:"))
        if bundle is None:
            return web.Response(status=404)
        return web.json_response({"attestations": [{"bundle": bundle, "repository_id": 1}]})

    async def listing(self, request: web.Request) -> web.Response:
        owner, name = request.match_info["o"], request.match_info["n"]
        repo = self.root / owner / name
        if not self._may(request, f"{owner}/{name}") or not repo.is_dir():
            return web.Response(status=404)
        rows = [
            {
                "tag_name": tag.name,
                "draft": False,
                "assets": [{"name": file.name} for file in tag.iterdir()],
            }
            for tag in sorted(repo.iterdir(), reverse=True)
        ]
        return web.json_response(rows)

    def _may(self, request: web.Request, repo: str) -> bool:
        said = request.headers.get("Authorization")
        return repo not in self.private or said == f"Bearer {self.token}"

    def _file(self, *parts: str) -> Path | None:
        path = self.root.joinpath(*parts)
        return path if path.is_file() else None


@asynccontextmanager
async def serve_github(root: Path, directory: Path) -> AsyncIterator[Github]:
    """On two ports of the loopback: the installation, and where the bytes lie."""
    github = Github(root, certificate=make_certificate(directory))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(github.certificate)
    github.trust = ssl.create_default_context(cafile=str(github.certificate))
    app = web.Application(middlewares=[github.noted])
    app.router.add_route("*", "/{o}/{n}/releases/download/{t}/{f}", github.download)
    app.router.add_route("*", "/signed/{o}/{n}/{t}/{f}", github.asset)
    app.router.add_get("/api/v3/repos/{o}/{n}/attestations/{digest}", github.attestations)
    app.router.add_get("/api/v3/repos/{o}/{n}/releases", github.listing)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    for _ in range(2):
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    github.host, github.assets = (f"127.0.0.1:{one[1]}" for one in runner.addresses)
    try:
        yield github
    finally:
        await runner.cleanup()
