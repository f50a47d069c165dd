"""Releases behind an https URL: redirects few, to https only and not to this host; every wait
bounded, resumable; small files asked for again only if they changed.

A download goes on where it stopped only if the server says that the file is the same (If-Range
with a strong ETag or a date, RFC 9110 section 13.1.5); any other answer begins it again.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from yarl import URL

from agent.releases.answered import Answered, Answers
from agent.releases.blocking import run
from agent.releases.manifest import MAX_MANIFEST_BYTES
from agent.releases.naming import manifest_path, signature_path
from agent.releases.port import ReleaseError, ReleaseNotFoundError, ReleaseSourceError
from agent.releases.reach import RedirectResolver
from agent.releases.signature import MAX_BUNDLE_BYTES
from agent.releases.source import CHUNK, Found, Sink

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 30.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ABSENT = frozenset({404, 410})
# What servers say to HEAD when they mind the method, not the path.
_HEAD_REFUSED = frozenset({400, 403, 405, 501})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
_MAX_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class Access:
    """What else a source is sent. The token in `token_file` goes to it alone, not where it
    redirects to; it is read anew for each request, so that it can be replaced.
    """

    token_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpsSource:
    """Releases under a base URL. The session is made with the first request."""

    def __init__(
        self,
        base: str,
        executor: Executor,
        tls: ssl.SSLContext | None = None,
        access: Access | None = None,
        *,
        field: str = "releases.source",
    ) -> None:
        url = URL(base)
        if url.scheme != "https" or not url.host or url.user or url.query_string or url.fragment:
            raise ReleaseSourceError(
                f"{field}: must be an https URL without user, query and fragment"
            )
        self._base = url
        self._executor = executor
        self._tls = tls
        self._access = access or Access()
        self.answers = Answers()
        self._session: aiohttp.ClientSession | None = None
        self._resolver: RedirectResolver | None = None

    async def manifest(self, repo: str, tag: str) -> bytes:
        data = await self.small(manifest_path(repo, tag), MAX_MANIFEST_BYTES)
        if data is None:
            raise ReleaseNotFoundError(f"no release {repo} {tag} at {self._base}")
        return data

    async def signature(self, repo: str, tag: str) -> bytes | None:
        return await self.small(signature_path(repo, tag), MAX_BUNDLE_BYTES)

    def known(self, repo: str, tag: str) -> Answered | None:
        return self.answers.of(manifest_path(repo, tag))

    def remember(self, repo: str, tag: str, answered: Answered) -> None:
        self.answers.put(manifest_path(repo, tag), answered)

    async def small(
        self, path: str, max_bytes: int, query: Mapping[str, str] | None = None
    ) -> bytes | None:
        """A small file whole; None: there is none. Raises ReleaseError, ReleaseSourceError."""
        known = self.answers.of(path)
        headers = {"If-None-Match": known.tag} if known else {}
        async with self._request("GET", path, headers, query) as response:
            if response.status == 304 and known is not None:
                return known.data
            if response.status in _ABSENT:
                return None
            self._expect(response, path, 200)
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > max_bytes:
                    raise ReleaseError(f"{path}: longer than {max_bytes} bytes")
            tag = response.headers.get("ETag")
            self.answers.put(path, Answered(tag, bytes(data)) if tag else None)
            return bytes(data)

    async def find(self, paths: Iterable[str]) -> Found | None:
        for path in paths:
            found = await self.look(path)
            if found is not None:
                return found
        return None

    async def copy(self, found: Found, sink: Sink) -> None:
        headers: dict[str, str] = {}
        if sink.offset and sink.validator:
            headers = {"Range": f"bytes={sink.offset}-", "If-Range": sink.validator}
        async with self._request("GET", found.path, headers) as response:
            if response.status == 206 and headers:
                if _start_and_total(response)[0] != sink.offset:
                    raise self._error(found.path, "answered with another range than asked for")
            elif response.status == 416 and headers:
                if _start_and_total(response)[1] == sink.offset:
                    return  # all of it is here already
                await run(self._executor, lambda _: sink.restart(None))
                raise self._error(found.path, "is shorter than it was")
            else:
                self._expect(response, found.path, 200)
                validator = _validator(response)
                await run(self._executor, lambda _: sink.restart(validator))
            await self._receive(response, sink)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def look(self, path: str) -> Found | None:
        """Whether there is such a file; of what size, if that is told."""
        async with self._request("HEAD", path) as response:
            if response.status in _ABSENT:
                return None
            if response.status not in _HEAD_REFUSED:
                self._expect(response, path, 200)
                return Found(path, response.content_length)
        async with self._request("GET", path, {"Range": "bytes=0-0"}) as response:
            if response.status in _ABSENT or response.status == 403:
                return None  # some stores answer 403 for what does not exist
            if response.status == 206:
                return Found(path, _start_and_total(response)[1])
            self._expect(response, path, 200)
            return Found(path, response.content_length)

    async def _receive(self, response: aiohttp.ClientResponse, sink: Sink) -> None:
        """Write in big pieces; what came before a connection broke is kept."""
        waiting = bytearray()

        async def flush() -> None:
            chunk = bytes(waiting)
            waiting.clear()
            await run(self._executor, lambda _: sink.write(chunk))

        try:
            async for chunk in response.content.iter_any():
                waiting += chunk
                if len(waiting) >= CHUNK:
                    await flush()
        except (aiohttp.ClientError, TimeoutError, OSError):
            await flush()
            raise
        await flush()

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = self._base.joinpath(*path.split("/")).with_query(query)
        session, own = self._opened(), await self._own_headers()
        for _ in range(MAX_REDIRECTS + 1):
            sent = {**(headers or {}), **(own if url.origin() == self._base.origin() else {})}
            with self._told(path):
                async with session.request(
                    method, url, headers=sent, allow_redirects=False
                ) as response:
                    if response.status not in _REDIRECTS:
                        yield response
                        return
                    url = self._redirected(response, path)
        raise self._error(path, f"was redirected more than {MAX_REDIRECTS} times")

    async def _own_headers(self) -> dict[str, str]:
        """For the source itself alone."""
        path = self._access.token_file
        if path is None:
            return dict(self._access.headers)
        token = await run(self._executor, lambda _: _read_token(path))
        return {**self._access.headers, "Authorization": f"Bearer {token}"}

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._resolver = RedirectResolver(self._base.host or "")
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=4, ssl=self._tls or True, resolver=self._resolver
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
                ),
                headers={"Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    def _redirected(self, response: aiohttp.ClientResponse, path: str) -> URL:
        try:
            url = response.url.join(URL(response.headers.get("Location", "")))
        except ValueError:
            raise self._error(path, "was redirected to no URL") from None
        if url.scheme != "https":
            raise self._error(path, "was redirected to something else than https")
        if self._resolver is not None and self._resolver.forbids(url.host or ""):
            raise self._error(path, "was redirected to this host itself, or to its link")
        return url

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Tell what a connection suffers in the port's words; the cause stays attached."""
        try:
            yield
        except TimeoutError as error:
            raise self._error(path, "did not answer in time") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise self._error(path, "cannot be read") from error

    def _expect(self, response: aiohttp.ClientResponse, path: str, status: int) -> None:
        if response.status != status:
            raise self._error(path, f"answered {response.status}{_when_again(response)}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self._error(path, "came encoded, although that was not asked for")

    def _error(self, path: str, what: str) -> ReleaseSourceError:
        return ReleaseSourceError(f"{self._base}: {path} {what}")


def _read_token(path: Path) -> str:
    try:
        token = path.read_bytes()[: _MAX_TOKEN + 1].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseSourceError(f"the token of the source in {path} cannot be read") from error
    if not token or len(token) > _MAX_TOKEN or not token.isprintable() or " " in token:
        raise ReleaseSourceError(f"{path} holds no token: one word on one line")
    return token


def _when_again(response: aiohttp.ClientResponse) -> str:
    """What a server that is asked too often says."""
    after = response.headers.get("Retry-After", "")
    return f"; it may be asked again in {after} s" if after.isdecimal() else ""


def _validator(response: aiohttp.ClientResponse) -> str | None:
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _start_and_total(response: aiohttp.ClientResponse) -> tuple[int | None, int | None]:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        return None, None
    return (int(match[1]) if match[1] else None), int(match[3])
