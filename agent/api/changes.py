"""Handlers that change something: each is one call of the engine, durable when it is answered."""

from __future__ import annotations

from collections.abc import Callable

from agent.api import validation
from agent.api.lookup import deployment_name, new_name
from agent.api.reply import Reply, json_reply
from agent.api.route import Call, Matches, Recall
from agent.api.views import deployment_view, update_view
from agent.model.ids import DeploymentName
from agent.model.update import Update
from agent.updates.errors import UnknownNameError
from agent.wire.answers import (
    ChipAccepted,
    Deployed,
    DeploymentAnswer,
    Draining,
    EpochReset,
    StaleSecrets,
)
from agent.wire.views import DeploymentView, UpdateView


def recalling(answer: Callable[[Call, Update], Reply]) -> Recall:
    """How a request that began an update finds it again, and answers with it."""

    async def recall(call: Call, matches: Matches) -> Reply | None:
        try:
            updates = await call.surface.engine.updates(deployment_name(call))
        except UnknownNameError:
            return None
        for update in updates:
            if matches(update.request):
                return answer(call, update)
        return None

    return recall


async def deploy(call: Call) -> Reply:
    request = validation.new_deployment(new_name(call), call.body)
    return created(call, await call.surface.engine.deploy(request, call.caller))


def created(call: Call, update: Update) -> Reply:
    """A deployment with its first update."""
    name = update.deployment
    return json_reply(
        Deployed(
            deployment=_deployment(call, name),
            update=_update(call, update),
            warnings=list(update.warnings),
        ),
        202,
    )


def admitted(call: Call, update: Update) -> Reply:
    """An update that begins."""
    return json_reply(_update(call, update), 202)


async def update(call: Call) -> Reply:
    name = deployment_name(call)
    made = await call.surface.engine.update(name, validation.change(call.body), call.caller)
    return admitted(call, made)


async def rollback(call: Call) -> Reply:
    name = deployment_name(call)
    target = validation.rollback_target(call.body)
    made = await call.surface.engine.rollback(name, target, call.caller)
    return admitted(call, made)


async def accept(call: Call) -> Reply:
    name = deployment_name(call)
    return json_reply(_update(call, await call.surface.engine.accept(name, call.caller)), 202)


async def cancel(call: Call) -> Reply:
    name = deployment_name(call)
    cancelled = await call.surface.engine.cancel(name, call.caller)
    if cancelled is None:
        return json_reply(DeploymentAnswer(deployment=_deployment(call, name)))
    return json_reply(_update(call, cancelled), 202)


async def retry(call: Call) -> Reply:
    name = deployment_name(call)
    return admitted(call, await call.surface.engine.retry(name, call.caller))


async def start(call: Call) -> Reply:
    name = deployment_name(call)
    return admitted(call, await call.surface.engine.start(name, call.caller))


async def stop(call: Call) -> Reply:
    name = deployment_name(call)
    await call.surface.engine.stop(name, call.caller)
    return json_reply(DeploymentAnswer(deployment=_deployment(call, name)), 202)


async def delete(call: Call) -> Reply:
    name = deployment_name(call)
    await call.surface.engine.delete(name, call.caller)
    return json_reply(DeploymentAnswer(deployment=_deployment(call, name)), 202)


async def set_secrets(call: Call) -> Reply:
    name = deployment_name(call)
    values = validation.secret_values(call.body)
    stale = await call.surface.engine.set_secrets(name, values, call.caller)
    return json_reply(StaleSecrets(stale_secrets=list(stale)))


async def drain(call: Call) -> Reply:
    await call.surface.engine.drain(call.caller)
    return json_reply(Draining(draining=True))


async def undrain(call: Call) -> Reply:
    await call.surface.engine.undrain(call.caller)
    return json_reply(Draining(draining=False))


async def reset_epoch(call: Call) -> Reply:
    """Only on the host itself: it is what a coordinator of the past would want."""
    forgotten = await call.surface.engine.reset_epoch(call.caller)
    return json_reply(EpochReset(forgotten=forgotten))


async def accept_chip(call: Call) -> Reply:
    """Only on the host itself: whoever has moved a machine's disk must not be able to say so."""
    change = await call.surface.engine.accept_chip(deployment_name(call), call.caller)
    return json_reply(ChipAccepted(source=change.source, old=change.old, new=change.new))


def _deployment(call: Call, name: DeploymentName) -> DeploymentView | None:
    snapshot = call.surface.engine.snapshot
    facts = snapshot.deployments.get(name)
    return deployment_view(facts, snapshot.observed_at) if facts else None


def _update(call: Call, row: Update) -> UpdateView:
    snapshot = call.surface.engine.snapshot
    return update_view(row, snapshot.deployments.get(row.deployment), snapshot.observed_at)
