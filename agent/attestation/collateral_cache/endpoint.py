"""`POST /attestation-collaterals`: a guest's collateral, on a listener of its own.

A guest says its evidence and gets what stands for it, and nothing else: no URL of its choosing is
asked, and what it gets is signed by the vendor, so that it needs no trust in us, nor in the plain
HTTP between. Connections, bodies, waits and peers are bounded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
import socket
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from agent.attestation.collateral_cache.bundle import (
    Collaterals,
    snp_collaterals,
    tdx_collaterals,
)
from agent.attestation.collateral_cache.cache import CollateralNotYetError
from agent.attestation.collateral_cache.endorser import CachedEndorser
from agent.attestation.collateral_cache.token_bucket import TokenBuckets
from agent.attestation.document import MAX_EVIDENCE_BYTES, CpuKind
from agent.attestation.evidence import EvidenceError
from agent.door.body import read_bounded
from agent.door.connection import DoorConnection, Room
from agent.door.held import Held
from agent.door.limits import Limits
from agent.door.plain import Crowd, PlainAcceptor
from agent.errors import AgentError
from agent.host.clock import Clock
from agent.model.resources import Listen
from agent.strict_json import StrictJsonError, decode_strict_json

log = logging.getLogger(__name__)

PATH = "/attestation-collaterals"
_MAX_BODY_BYTES = 4 * MAX_EVIDENCE_BYTES // 3 + 4096
_BODY_S = 10.0
_MAX_AT_ONCE = 32
_BACKLOG = 128
_LIMITS = Limits(most=256, per_peer=48)
_HELD_BYTES = 2 << 20
_Name = Annotated[str, msgspec.Meta(max_length=256)]


class EndpointError(AgentError):
    """The listener cannot be had. The text names the setting."""

    @property
    def code(self) -> str:
        return "listen_failed"


class _Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`repo` and `tag` name the guest's release; nothing is given for it here."""

    platform: Literal["sev-snp", "tdx"]
    quote_base64: str
    repo: _Name = ""
    tag: _Name = ""


class CollateralEndpoint:
    """One server. `close` lets questions under way finish for a moment."""

    def __init__(
        self,
        endorser: CachedEndorser,
        clock: Clock,
        buckets: TokenBuckets | None = None,
        limits: Limits = _LIMITS,
    ) -> None:
        self._endorser = endorser
        self._clock = clock
        self._buckets = buckets or TokenBuckets()
        self._guests_room = Room(limits, Held(_HELD_BYTES))
        self._sock: socket.socket | None = None
        self._acceptor: PlainAcceptor | None = None
        self._room = asyncio.Semaphore(_MAX_AT_ONCE)
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post(PATH, self._answer)
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=1.0)

    async def start(self, where: Listen) -> int:
        """Listen; the port is given back. Raises EndpointError."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None

        def connect(peer: str, crowd: Crowd) -> DoorConnection:
            return DoorConnection(server, room=self._guests_room, peer=peer, crowd=crowd)

        try:
            self._sock = _listening(where)
        except OSError as error:
            await self._runner.cleanup()
            raise EndpointError(
                f"attestation.collateral.listen: cannot listen on {where}: {error.strerror}"
            ) from error
        self._acceptor = PlainAcceptor(self._sock, connect, self._guests_room.limits)
        self._acceptor.start("collateral-endpoint")
        port: int = self._sock.getsockname()[1]
        return port

    async def close(self) -> None:
        """Take no more questions."""
        if self._acceptor is not None:
            await self._acceptor.stop()
        if self._sock is not None:
            self._sock.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        connection = request.protocol
        assert isinstance(connection, DoorConnection)
        with connection.serving():
            response = await self._admit(request)
        response.force_close()
        return response

    async def _admit(self, request: web.Request) -> web.Response:
        wait_s = self._buckets.wait_s(request.remote or "", self._clock.now().boottime_s)
        if wait_s:
            return _later(429, "too_many_requests", "ask less often", wait_s)
        if self._room.locked():
            return _later(503, "busy", "too many ask at once", 1.0)
        async with self._room:
            return await self._judge(request)

    async def _judge(self, request: web.Request) -> web.Response:
        try:
            data = await read_bounded(request, _MAX_BODY_BYTES, _BODY_S)
        except TimeoutError:
            return _refusal(408, "too_slow", f"the body did not come in {_BODY_S:g} s")
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, "too_large", f"the body is over {_MAX_BODY_BYTES} bytes")
        try:
            question = decode_strict_json(data, _Question)
            evidence = base64.b64decode(question.quote_base64, validate=True)
        except StrictJsonError as error:
            return _refusal(400, "bad_request", str(error))
        except (binascii.Error, ValueError):
            return _refusal(400, "bad_request", "quote_base64: it is not base64")
        return await self._found(CpuKind(question.platform), evidence)

    async def _found(self, kind: CpuKind, evidence: bytes) -> web.Response:
        try:
            found = await self._collaterals(kind, evidence)
        except EvidenceError as error:
            return _refusal(400, error.code, f"quote_base64: {error}")
        except CollateralNotYetError as error:
            return _later(503, error.code, "the vendor does not answer now", error.wait_s)
        if found is None:
            return _refusal(404, "no_collateral", "nothing is known that stands for this evidence")
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _collaterals(self, kind: CpuKind, evidence: bytes) -> Collaterals | None:
        if kind is CpuKind.SNP:
            snp = await self._endorser.snp_parts(evidence)
            return snp_collaterals(snp.vcek, snp.chain, snp.crl) if snp else None
        tdx = await self._endorser.tdx_parts(evidence)
        return tdx_collaterals(tdx) if tdx else None


def _listening(where: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in where.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((where.address, where.port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _refusal(status: int, code: str, detail: str, **headers: str) -> web.Response:
    body = msgspec.json.encode({"status": status, "code": code, "detail": detail})
    return web.Response(
        status=status,
        body=body,
        content_type="application/problem+json",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def _later(status: int, code: str, detail: str, wait_s: float) -> web.Response:
    return _refusal(status, code, detail, Retry_After=str(max(1, math.ceil(wait_s))))
