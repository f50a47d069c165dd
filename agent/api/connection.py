"""One connection of the API: what is no HTTP is answered like everything else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web

from agent.api.problems import problem
from agent.door.connection import DoorConnection, Room
from agent.host.paced_log import PacedLog
from agent.pki.peer import Peer

_log = logging.getLogger(__name__)
_loud = PacedLog(_log)
_RUBBISH = "This is not HTTP, or its first line or a header is over 8190 bytes."
_TOO_LARGE = problem(431, "head_too_large", "The head of the request is over 64 KiB.")


class Connection(DoorConnection):
    """What is not even HTTP is answered in the same form as everything else.

    It is not logged loud: anyone who can connect can send rubbish. `gone` is set once the client
    has left, so that nothing is begun for it any more.
    """

    TOO_LARGE = (_TOO_LARGE.content_type, _TOO_LARGE.body)

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
            _loud.error("request failed unexpectedly", exc_info=exc)
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
        self, server: web.Server, *, room: Room, peer: Peer, lost: Callable[[PeerConnection], None]
    ) -> None:
        super().__init__(server, room=room, peer=f"{peer.uri} {peer.mark.hex()[:16]}")
        self.peer = peer
        self._lost = lost

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lost(self)
        super().connection_lost(exc)
