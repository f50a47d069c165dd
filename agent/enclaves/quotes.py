"""Whether a quote generation service is there: without it a trust domain proves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from pathlib import Path
from typing import assert_never

from agent.enclaves.spec import QuoteService, UnixQuotes, VsockQuotes
from agent.errors import describe
from agent.host.units import Borrow, LendError

DIAL_S = 2.0
_VSOCK = re.compile(r"vsock:([0-9]{1,10}):([0-9]{1,10})")


def read_quote_service(text: str) -> QuoteService:
    """`vsock:CID:PORT`, or the absolute path of a unix socket. Raises SpecError."""
    found = _VSOCK.fullmatch(text)
    return VsockQuotes(int(found[1]), int(found[2])) if found else UnixQuotes(Path(text))


async def quotes_fault(service: QuoteService, borrow: Borrow | None = None) -> str | None:
    """Why it cannot be reached; None if it takes a connection. QEMU dials it in the same way.

    `borrow`: who dials a machine's own port for us, where our own unit is closed to those.
    """
    where, address, family = _address(service)
    if borrow is not None and isinstance(service, VsockQuotes):
        try:
            os.close(await borrow("dial", str(service.cid), str(service.port)))
        except LendError as error:
            return f"the quote service at {where} cannot be reached: {describe(error)}"
        return None
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as held:
        try:
            sock = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            async with asyncio.timeout(DIAL_S):
                await loop.sock_connect(sock, address)
        except TimeoutError:
            return f"the quote service at {where} does not answer within {DIAL_S:g} s"
        except OSError as error:
            return f"the quote service at {where} cannot be reached: {error.strerror}"
    return None


def _address(service: QuoteService) -> tuple[str, tuple[int, int] | str, socket.AddressFamily]:
    match service:
        case VsockQuotes(cid, port):
            return f"vsock {cid}:{port}", (cid, port), socket.AF_VSOCK
        case UnixQuotes(path):
            return str(path), str(path), socket.AF_UNIX
    assert_never(service)
