"""The HTTP application: one pipeline for every route of the table.

Order: permission, query, readiness (of what changes something), body, idempotency, handler. Every
error on the way becomes problem details in one place. A handler runs to its end even if its client
goes away: what was admitted must not hang half-done on a broken connection. The engine is told of
it, and drops what is not admitted by then.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from agent.api.body import decode, read_body, shown
from agent.api.connection import Connection, PeerConnection
from agent.api.idempotency import REPLAYED, Mark, RequestId, parse_key
from agent.api.names import is_ours
from agent.api.problems import HttpError, reply_to, starting
from agent.api.query import read_query
from agent.api.reply import Reply, with_headers
from agent.api.roles import Permission, Role, may
from agent.api.route import Call, HttpRoute
from agent.api.routes import ROUTES
from agent.api.surface import Surface
from agent.store.port import StoreDamagedError
from agent.updates.errors import AbandonedError, StaleEpochError
from agent.updates.orders import Caller
from agent.updates.snapshot.snapshot import Snapshot
from agent.wire.requests import EmptyRequest
from agent.wire.text import MAX_BODY_BYTES

_Served = Callable[[web.Request], Awaitable[web.StreamResponse]]
_PEER = struct.Struct("3i")


def make_app(surface: Surface, role: Role) -> web.Application:
    """The application as one role sees it. Listeners of other roles share the surface."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_outermost(surface)])
    for route in ROUTES:
        endpoint = _endpoint(route, surface, role)
        app.router.add_route(route.method, route.path, endpoint)
        if route.method == "GET":
            app.router.add_route("HEAD", route.path, endpoint)

    async def close_streams(_: web.Application) -> None:
        surface.streams.close()

    app.on_shutdown.append(close_streams)
    return app


def _outermost(surface: Surface) -> Middleware:
    @web.middleware
    async def outermost(request: web.Request, handler: _Served) -> web.StreamResponse:
        with _serving(request):
            try:
                return await handler(request)
            except Exception as error:  # noqa: BLE001 - the one place where errors become answers
                reply = reply_to(error)
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "other"
        surface.counters.count_request(request.method if resource else "other", path, reply.status)
        return _response(reply)

    return outermost


def _serving(request: web.Request) -> contextlib.AbstractContextManager[None]:
    """Who is being served is not waited for."""
    connection = request.protocol
    if isinstance(connection, Connection):
        return connection.serving()
    return contextlib.nullcontext()


def _asked_as(request: web.Request) -> list[str]:
    """Every name that a request has for this host; one within its target is a name, too."""
    names = request.headers.getall("Host", [])
    return names if request.raw_path.startswith("/") else [*names, request.host]


def _endpoint(route: HttpRoute, surface: Surface, role: Role) -> _Served:
    allowed = may(role, route.permission)

    async def serve(request: web.Request) -> web.StreamResponse:
        if role is Role.STATUS:
            for name in _asked_as(request):
                if not is_ours(name, surface.status_names):
                    raise HttpError(421, "misdirected", _misdirected(name))
        if not allowed:
            raise HttpError(403, "forbidden", _forbidden(role))
        query = read_query(route.query, request.query) if _strict(route) else {}
        if route.changes:
            _refuse_unready(surface.engine.snapshot)
        result = await _perform(route, surface, role, request, query)
        surface.counters.count_request(route.method, route.path, result.status)
        return _response(result) if isinstance(result, Reply) else result

    return serve


def _refuse_unready(snapshot: Snapshot) -> None:
    if snapshot.store_damage is not None:
        raise StoreDamagedError(snapshot.store_damage)
    if not snapshot.ready:
        raise starting()


async def _perform(
    route: HttpRoute, surface: Surface, role: Role, request: web.Request, query: dict[str, object]
) -> Reply | web.StreamResponse:
    reads = route.method == "GET"
    data = b"" if reads else await read_body(request)
    caller = _caller(request, role)
    if role is Role.COORDINATOR and route.changes:
        await _check_epoch(surface, caller)

    def call(caller: Caller, body: Any = None) -> Call:
        return Call(surface, role, request, request.match_info, query, body, caller)

    async def handle(caller: Caller) -> Reply | web.StreamResponse:
        kind = EmptyRequest if route.body is None else route.body
        return await route.handler(call(caller, None if reads else decode(data, kind)))

    key = request.headers.get("Idempotency-Key")
    if key is None or not route.changes:
        return await handle(caller)
    which = RequestId(caller.name, route.method, request.path, parse_key(key))
    marked = msgspec.structs.replace(caller, request=str(surface.idempotency.mark(which, data)))

    async def execute() -> Reply:
        try:
            result = await handle(marked)
        except (StaleEpochError, AbandonedError):
            raise  # not kept: a reset of the epoch mends it; it was not admitted, and may be anew
        except Exception as error:  # noqa: BLE001 - a refusal is an answer too, and kept
            return reply_to(error)
        assert isinstance(result, Reply)
        return result

    async def recall(mark: Mark) -> Reply | None:
        if route.recall is None:
            return None
        reply = await route.recall(call(marked), mark.marks)
        return with_headers(reply, REPLAYED) if reply else None

    return await surface.idempotency.once(which, data, execute, recall)


def _strict(route: HttpRoute) -> bool:
    """Scrapers and load balancers may decorate what is public; elsewhere a typo is told."""
    return route.permission is not Permission.STATUS


def _caller(request: web.Request, role: Role) -> Caller:
    """Who asks, by what the kernel or the certificate says."""
    epoch = request.headers.get("Coordinator-Epoch")
    if epoch is not None and not (epoch.isascii() and epoch.isdigit() and len(epoch) <= 15):
        raise HttpError(400, "bad_request", "must be a whole number", field="Coordinator-Epoch")
    said = int(epoch) if epoch and role is Role.COORDINATOR else None
    connection = request.protocol
    gone = connection.gone if isinstance(connection, Connection) else None
    return Caller(name=_peer(request, role), epoch=said, gone=gone)


async def _check_epoch(surface: Surface, caller: Caller) -> None:
    """Of whatever a coordinator would change, refused or not: what was seen was seen."""
    if caller.epoch is None:
        detail = "a coordinator says its epoch with everything that it changes"
        raise HttpError(400, "bad_request", detail, field="Coordinator-Epoch")
    await surface.engine.see_epoch(caller)


def _peer(request: web.Request, role: Role) -> str:
    if isinstance(request.protocol, PeerConnection):
        return request.protocol.peer.uri
    sock = request.get_extra_info("socket")
    if role is Role.LOCAL and sock is not None and sock.family == socket.AF_UNIX:
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(found)
        return f"local:{uid}"
    return str(role)


def _forbidden(role: Role) -> str:
    if role is Role.STATUS:
        return "This listener only tells the status; ask on the agent's unix socket."
    return f"The role {role} may not do this."


def _misdirected(host: str) -> str:
    return (
        f"{shown(host)} is no name of this host: ask by its address or name, or add the name to "
        "listen.status_names"
    )


def _response(reply: Reply) -> web.Response:
    headers = {"Content-Type": reply.content_type, **reply.headers}
    return web.Response(status=reply.status, body=reply.body, headers=headers)
