"""One connection of the API: what is no HTTP is answered alike, and over TLS time is bounded.

A peer over TLS has `HEAD_S` for the head of a request, from its first byte (or from the
handshake), and at most `HEAD_BYTES` for it. While a request is served nothing of this runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from aiohttp import web

from agent.api.problems import problem
from agent.pki.peer import Peer

_log = logging.getLogger(__name__)
HEAD_S = 10.0
HEAD_BYTES = 1 << 20
_RUBBISH = "This is not HTTP, or its first line or a header is over 8190 bytes."


class Connection(web.RequestHandler):
    """What is not even HTTP is answered in the same form as everything else.

    It is not logged loud: anyone who can connect can send rubbish. `gone` is set once the client
    has left, so that nothing is begun for it any more.
    """

    def __init__(self, server: web.Server, **more: Any) -> None:
        super().__init__(server, **more)
        self.gone = asyncio.Event()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.gone.set()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            _log.error("request failed unexpectedly", exc_info=exc)
            reply = problem(500, "internal", "The agent failed; its log says why.")
        else:
            _log.debug("malformed request: %s", message)
            reply = problem(status, "bad_http", _RUBBISH)
        response = web.Response(
            status=reply.status, body=reply.body, content_type=reply.content_type
        )
        response.force_close()
        return response


class PeerConnection(Connection):
    """Over TLS, with a peer whose certificate gave it a role."""

    def __init__(
        self,
        server: web.Server,
        *,
        peer: Peer,
        lost: Callable[[PeerConnection], None],
        head_s: float = HEAD_S,
        **more: Any,
    ) -> None:
        super().__init__(server, **more)
        self.peer = peer
        self._lost = lost
        self._head_s = head_s
        self._serving = 0
        self._head_bytes = 0
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._begin_to_wait()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wait_no_more()
        self._lost(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._serving:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.abort("the head of its request has no end")
                return
            if self._patience is None:
                self._begin_to_wait()
        super().data_received(data)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """While a request is served: its head is here."""
        self._serving += 1
        self._wait_no_more()
        try:
            yield
        finally:
            self._serving -= 1
            self._head_bytes = 0

    def abort(self, reason: str) -> None:
        """End it at once, without another byte."""
        _log.info("connection closed", extra={"peer": self.peer.uri, "reason": reason})
        if self.transport is not None:
            self.transport.abort()

    def _begin_to_wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(self._head_s, self.abort, "no request came in time")

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
