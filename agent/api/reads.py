"""Handlers that only read: the snapshot, mostly."""

from __future__ import annotations

import asyncio
import datetime as dt

import msgspec
from aiohttp import web

from agent.api import validation
from agent.api.attestation_view import attestation_answer
from agent.api.lookup import deployment, deployment_name, enclave, enclave_id
from agent.api.page import capacity_view
from agent.api.problems import HttpError
from agent.api.reply import JSON, Reply, json_reply
from agent.api.roles import Role
from agent.api.route import Call
from agent.api.views import (
    decision_view,
    deployment_view,
    enclave_view,
    secret_view,
    update_view,
)
from agent.model.ended_console import EndedConsole
from agent.model.ids import DeploymentName
from agent.updates.errors import UnknownNameError
from agent.wire.answers import (
    Deployments,
    Enclaves,
    EndedConsoles,
    EndedConsoleView,
    Events,
    Secrets,
    Updates,
)
from agent.wire.host_views import HealthView

DEFAULT_TAIL = 64 * 1024
_EVENT_STREAM = "text/event-stream"
_QUICK = 256 * 1024  # more than this would hold the loop up


async def healthz(call: Call) -> Reply:
    reasons = list(call.surface.alive())
    return json_reply(HealthView(ready=not reasons, reasons=reasons), 503 if reasons else 200)


async def readyz(call: Call) -> Reply:
    snapshot = call.surface.engine.snapshot
    reasons = list(snapshot.not_ready_reasons)
    ready = snapshot.ready and snapshot.host.inventory_complete
    if not ready and not reasons:
        reasons = ["inventory_incomplete" if snapshot.ready else "starting"]
    return json_reply(HealthView(ready=ready, reasons=reasons), 200 if ready else 503)


async def status(call: Call) -> Reply:
    return Reply(200, call.surface.page.body(public=call.role is Role.STATUS), JSON)


async def metrics(call: Call) -> Reply:
    from agent.api.metrics import CONTENT_TYPE, exposition

    return Reply(200, exposition(call.surface), CONTENT_TYPE)


async def openapi(call: Call) -> Reply:
    from agent.api.openapi import document_bytes

    del call
    return Reply(200, document_bytes(), JSON)


async def capacity(call: Call) -> Reply:
    return json_reply(capacity_view(call.surface.engine.snapshot))


async def plan(call: Call) -> Reply:
    question = validation.plan_question(call.body)
    return json_reply(decision_view(await call.surface.engine.plan(question)))


async def deployments(call: Call) -> Reply:
    snapshot = call.surface.engine.snapshot
    views = [
        deployment_view(facts, snapshot.observed_at)
        for _, facts in sorted(snapshot.deployments.items())
    ]
    return json_reply(Deployments(deployments=views))


async def one_deployment(call: Call) -> Reply:
    facts = deployment(call)
    return json_reply(deployment_view(facts, call.surface.engine.snapshot.observed_at))


async def secrets(call: Call) -> Reply:
    found = await call.surface.engine.secrets(deployment_name(call))
    return json_reply(Secrets(secrets=[secret_view(one) for one in found]))


async def updates(call: Call) -> Reply:
    name = deployment_name(call)
    rows = await call.surface.engine.updates(name)
    snapshot = call.surface.engine.snapshot
    facts = snapshot.deployments.get(name)
    views = [update_view(row, facts, snapshot.observed_at) for row in rows]
    return json_reply(Updates(updates=views))


async def current_update(call: Call) -> Reply:
    facts, now = deployment(call), call.surface.engine.snapshot.observed_at
    if facts.update is None:
        raise UnknownNameError(f"{facts.row.name} has had no update")
    return json_reply(update_view(facts.update, facts, now))


async def enclaves(call: Call) -> Reply:
    snapshot = call.surface.engine.snapshot
    views = [
        enclave_view(one, snapshot.observed_at)
        for _, facts in sorted(snapshot.deployments.items())
        for one in sorted(facts.enclaves, key=lambda one: one.row.slot)
    ]
    return json_reply(Enclaves(enclaves=views))


async def one_enclave(call: Call) -> Reply:
    return json_reply(enclave_view(enclave(call), call.surface.engine.snapshot.observed_at))


async def boot_stages(call: Call) -> Reply:
    health = enclave(call).health
    if health is None or health.boot_stages is None:
        raise HttpError(404, "not_known_yet", "The guest has not shown its boot stages yet.")
    return Reply(200, msgspec.json.encode(health.boot_stages))


async def attestation(call: Call) -> Reply:
    """The guest's own bytes, untouched, within ours."""
    nonce = call.query.get("nonce")
    given = bytes.fromhex(nonce) if nonce else None
    found = await call.surface.engine.evidence(enclave(call).row.id, given)
    return json_reply(attestation_answer(found))


async def console(call: Call) -> Reply:
    """The newest bytes. What is no character, or was cut through, shows as U+FFFD."""
    tail = call.query.get("tail", DEFAULT_TAIL)
    data = await call.surface.engine.console(enclave_id(call), tail)
    body = await asyncio.to_thread(_as_text, data) if len(data) > _QUICK else _as_text(data)
    return Reply(200, body, "text/plain; charset=utf-8")


async def ended_consoles(call: Call) -> Reply:
    """Of a deployment that may be gone itself."""
    found = await call.surface.engine.ended_consoles(DeploymentName(call.query["deployment"]))
    return json_reply(EndedConsoles(consoles=[_ended(one) for one in found]))


def _ended(one: EndedConsole) -> EndedConsoleView:
    return EndedConsoleView(
        enclave=one.enclave,
        deployment=one.deployment,
        slot=one.slot,
        revision=one.revision,
        tag=one.tag,
        ended_at=dt.datetime.fromtimestamp(one.ended_at, dt.UTC),
        bytes=one.bytes,
    )


def _as_text(data: bytes) -> bytes:
    return data.decode("utf-8", "replace").encode()


async def events(call: Call) -> Reply | web.StreamResponse:
    engine = call.surface.engine
    after = call.query.get("after", 0)
    wants_stream = _EVENT_STREAM in call.request.headers.get("Accept", "")
    if call.request.method != "HEAD" and (call.query.get("follow") or wants_stream):
        after = max(after, _last_event_id(call.request))
        who = call.caller.name
        return await call.surface.streams.follow(engine, call.request, after, who)
    found = list(await engine.events(after, call.query.get("limit", 1000)))
    return json_reply(Events(events=found, next=found[-1].sequence if found else after))


def _last_event_id(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0
