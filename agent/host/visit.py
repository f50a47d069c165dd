"""Asking a guest over HTTPS: a fresh TLS connection for a few requests, or a few rounds of them.

Invariants: no connection outlives its visit; the key that an answer is credited to was read off
the very connection that brought it; a guest may be slow, endless or malicious, and costs no more
than the time and bytes that it was given for a round. Names and certificates are not trusted, only
noted.
"""

from __future__ import annotations

import asyncio
import ssl
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from agent.host.contact import Answer, Ending, NoAnswerError, tell
from agent.host.meter import Meter
from agent.host.peer_key import UnreadableKeyError, spki_sha256
from agent.model.enclave import Endpoint

_MAX_CONNECTION_BYTES = 320 * 1024  # more than all bounded answers of a round of probes
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "enclave-agent"}


class _Connector(aiohttp.TCPConnector):
    """Notes the key of the connection that each request is given, and meters what it sends."""

    keys: list[str]
    max_bytes: int
    meter: Meter | None = None

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        try:
            transport = connection.transport
            tls = transport.get_extra_info("ssl_object") if transport else None
            if transport is None or tls is None:
                raise UnreadableKeyError("the connection was closed after its handshake")
            key = spki_sha256(tls)
            self.meter = Meter.put_on(transport, self.max_bytes)
        except UnreadableKeyError:
            connection.close()
            raise
        if self.keys[-1:] != [key]:
            self.keys.append(key)
        return connection


class Visit:
    """One visit. Its connection is opened by the first request, and kept while answers are whole.

    `keys`: of the connections of this round in order, repeats left out (normally exactly one).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        *,
        max_bytes: int = _MAX_CONNECTION_BYTES,
    ) -> None:
        host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
        self._base = f"https://{host}:{endpoint.port}"
        self._connector = _Connector(ssl=context, limit=1, use_dns_cache=False)
        self.keys: list[str] = []
        self._connector.keys = self.keys
        self._connector.max_bytes = max_bytes
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    def begin_round(self) -> None:
        """Count keys and bytes from here."""
        self.keys.clear()
        if self._connector.meter:
            self._connector.meter.renew()

    async def get(
        self, path: str, *, timeout_s: float, max_bytes: int, body_wait_s: float | None = None
    ) -> Answer:
        """One GET, no redirects followed; at most `max_bytes` of the body.

        `body_wait_s`: how long to wait for the body once the status is known.

        The status and what came of the body by `timeout_s` is an answer; without a status by then,
        or with something that is not HTTP, raises NoAnswerError. A connection on which an answer
        was not read to its end is not used again.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._session.get(
                    URL(self._base + path, encoded=True), allow_redirects=False
                )
        except (TimeoutError, OSError, aiohttp.ClientError, ValueError) as error:
            raise NoAnswerError(self.flooded or _tell(error, timeout_s)) from error
        if body_wait_s is not None:
            deadline = min(deadline, clock() + body_wait_s)
        body, ending = bytearray(), Ending.CUT_OFF
        try:
            async with asyncio.timeout_at(deadline):
                ending = await _read_into(body, response.content, max_bytes)
        except (TimeoutError, OSError, aiohttp.ClientError):
            ending = Ending.TOO_LONG if self.flooded else Ending.CUT_OFF
        finally:
            if ending is Ending.COMPLETE:
                response.release()
            else:
                response.close()
        return Answer(response.status, bytes(body), ending)

    @property
    def flooded(self) -> str | None:
        """What to say of a guest that sent more than anybody asked for."""
        return self._connector.meter.exceeded if self._connector.meter else None


async def _read_into(body: bytearray, stream: aiohttp.StreamReader, max_bytes: int) -> Ending:
    """Read up to `max_bytes`."""
    while chunk := await stream.readany():
        body += chunk[: max_bytes + 1 - len(body)]
        if len(body) > max_bytes:
            del body[max_bytes:]
            return Ending.TOO_LONG
    return Ending.COMPLETE


def _tell(error: BaseException, timeout_s: float) -> str:
    """As `tell`, for what aiohttp adds."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.ClientConnectorError):
        return tell(error.os_error, timeout_s)
    if isinstance(error, aiohttp.ClientResponseError):
        return "its answer is not HTTP"
    return tell(error, timeout_s)
