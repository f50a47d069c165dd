"""HTTP to the coordinator: one kept connection, both ends' certificates verified, all bounded."""

from __future__ import annotations

import ssl
from typing import TypeVar

import aiohttp
import msgspec

from agent.errors import AgentError

T = TypeVar("T")
TIMEOUT_S = 10.0
_CONNECT_S = 5.0
_MAX_ANSWER_BYTES = 1 << 20


class AwayError(AgentError):
    """The coordinator was not reached, or did not answer as one. Trying again may help."""

    @property
    def code(self) -> str:
        return "coordinator_away"


class UntrustedError(AwayError):
    """Whoever listens there is not the coordinator of this fleet, or may not be believed."""

    @property
    def code(self) -> str:
        return "coordinator_untrusted"


class RejectedError(AwayError):
    """It answered, and said no. `status` is HTTP's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"it answered {status}: {detail}")
        self.status = status

    @property
    def code(self) -> str:
        return "coordinator_rejected"


class CoordinatorClient:
    """Speaks to one URL under one TLS context. Close it."""

    def __init__(self, url: str, tls: ssl.SSLContext, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=2, keepalive_timeout=75.0),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
        )
        self.tls = tls

    async def send(self, method: str, path: str, body: bytes, kind: type[T]) -> T:
        """One request and its answer as a value. Raises AwayError, RejectedError."""
        try:
            async with self._session.request(
                method,
                f"{self._url}{path}",
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                data = await _bounded(response)
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
            raise UntrustedError(str(error)) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise AwayError(str(error) or "it did not answer in time") from error
        if response.status != 200:
            raise RejectedError(response.status, _said(data))
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AwayError(f"its answer is not one of protocol 1: {error}") from error

    async def close(self) -> None:
        await self._session.close()


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > _MAX_ANSWER_BYTES:
            raise AwayError(f"its answer is longer than {_MAX_ANSWER_BYTES} bytes")
    return bytes(data)


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""


def _said(data: bytes) -> str:
    """What problem details say; somebody else's words, cut and made fit for one line."""
    try:
        detail = msgspec.json.decode(data, type=_Problem).detail
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = ""
    return ascii(detail[:200]) if detail else "it did not say why"
