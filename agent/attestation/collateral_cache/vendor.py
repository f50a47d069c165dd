"""The vendors' services: one bounded question over verified TLS, one answer or the reason.

No redirect is followed, nothing but the configured URLs is asked, and no answer is believed: who
asks authenticates it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp

from agent.attestation.collateral_cache.answer import MAX_BODY_BYTES, MAX_CHAIN_CHARS, VendorAnswer
from agent.attestation.collateral_cache.items import Service
from agent.errors import AgentError

DEADLINE_S = 10.0
_ABSENT = frozenset({400, 404, 410})
_BUSY = frozenset({429, 503})


class VendorError(AgentError):
    """The vendor gave no answer. `absent`: it has none to this. `retry_after`: its header."""

    def __init__(
        self,
        text: str,
        *,
        absent: bool = False,
        busy: bool = False,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(text)
        self.absent = absent
        self.busy = busy
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        return "collateral_unavailable"


class Vendors:
    """Asks by service. The session is made with the first question."""

    def __init__(
        self,
        urls: Mapping[Service, str],
        *,
        tls: ssl.SSLContext | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._urls = {service: url.rstrip("/") for service, url in urls.items()}
        self._tls = tls
        self._deadline_s = deadline_s
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, service: Service, path: str, chain_header: str | None) -> VendorAnswer:
        """The answer, whole and within its bounds. Raises VendorError."""
        url = f"{self._urls[service]}{path}"
        try:
            async with self._opened().get(url, allow_redirects=False) as response:
                _require_ok(response, url)
                chain = response.headers.get(chain_header, "") if chain_header else ""
                if len(chain) > MAX_CHAIN_CHARS:
                    raise VendorError(
                        f"{url}: {chain_header} is over {MAX_CHAIN_CHARS} characters"
                    )
                return VendorAnswer(body=await _body(response, url), chain=chain)
        except TimeoutError as error:
            raise VendorError(f"{url}: no answer in {self._deadline_s:g} s") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise VendorError(f"{url}: cannot be read") from error

    async def close(self) -> None:
        """End the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=4, ssl=self._tls or True),
                timeout=aiohttp.ClientTimeout(total=self._deadline_s),
                headers={"Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_field_size=2 * MAX_CHAIN_CHARS,
            )
        return self._session


def _require_ok(response: aiohttp.ClientResponse, url: str) -> None:
    status = response.status
    if status == 200:
        return
    raise VendorError(
        f"{url}: answered {status}",
        absent=status in _ABSENT,
        busy=status in _BUSY,
        retry_after=response.headers.get("Retry-After") if status in _BUSY else None,
    )


async def _body(response: aiohttp.ClientResponse, url: str) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise VendorError(f"{url}: the answer is longer than {MAX_BODY_BYTES} bytes")
    return bytes(data)
