"""What every contact with a guest may come to, and the plainest contact: a TCP connect."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from agent.errors import AgentError
from agent.host.guest_sockets import UNMARKED, GuestSockets
from agent.host.peer_key import UnreadableKeyError
from agent.model.enclave import Endpoint


class Door(StrEnum):
    """How a guest's port kept a caller out, as far as one attempt can tell."""

    REFUSED = "refused"
    CLOSED = "closed"  # accepted, by somebody, and ended before TLS was spoken


class NoAnswerError(AgentError):
    """The guest gave no answer that is HTTP. The text says what happened instead.

    `door`: what the port did, where it did something; None for a silence.
    """

    def __init__(self, text: str, door: Door | None = None) -> None:
        super().__init__(text)
        self.door = door

    @property
    def code(self) -> str:
        return "unreachable"


class Ending(StrEnum):
    """How the body of an answer ended."""

    COMPLETE = "complete"
    TOO_LONG = "too_long"
    CUT_OFF = "cut_off"  # by time or by the connection


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer, with as much of its body as was wanted and came in time."""

    status: int
    body: bytes
    ending: Ending


def client_context() -> ssl.SSLContext:
    """TLS 1.2 and newer, no trust in names or issuers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class TcpConnection:
    """A connection that was accepted, by somebody."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def settle(self, settle_s: float) -> None:
        """See that the connection lives for `settle_s`. Raises NoAnswerError.

        Needed because QEMU's user-mode network accepts before it has asked the guest, and ends the
        connection when the guest refuses. A guest that speaks first has accepted.
        """
        try:
            async with asyncio.timeout(settle_s):
                first = await asyncio.get_running_loop().sock_recv(self._socket, 1)
        except TimeoutError:
            return
        except OSError as error:
            raise NoAnswerError("accepted, then reset", Door.CLOSED) from error
        if not first:
            raise NoAnswerError("accepted, then closed", Door.CLOSED)


@asynccontextmanager
async def open_tcp(
    endpoint: Endpoint, *, timeout_s: float, sockets: GuestSockets = UNMARKED
) -> AsyncIterator[TcpConnection]:
    """Connect; the connection is dropped at the end. Raises NoAnswerError."""
    try:
        async with asyncio.timeout(timeout_s):
            connected = await sockets.connect(endpoint)
    except (TimeoutError, OSError) as error:
        raise NoAnswerError(tell(error, timeout_s), door_of(error)) from error
    with connected:
        yield TcpConnection(connected)


def door_of(error: BaseException) -> Door | None:
    """What the port did to a connection that ended in this before there was a TLS session."""
    match error:
        case ConnectionRefusedError():
            return Door.REFUSED
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ConnectionError():
            return Door.CLOSED
        case _:
            return None


def tell(error: BaseException, timeout_s: float) -> str:
    """What happened, in a few words that do not change from one time to the next."""
    match error:
        case TimeoutError() if error.errno is None:
            return f"no answer within {timeout_s:g} s"
        case ConnectionResetError():
            return "the connection was reset"
        case UnreadableKeyError():
            return str(error)
        case ssl.SSLError():
            return f"TLS failed: {error.reason or type(error).__name__}"
        case OSError():
            return f"not connected: {os.strerror(error.errno) if error.errno else error}"
        case _:
            return f"no answer: {type(error).__name__}"
