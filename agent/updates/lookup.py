"""What a request is about: the row that it names, or the error that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.model.revision import Deployment, DeploymentStatus, Revision
from agent.model.update import Update
from agent.store.port import Reader, Transaction
from agent.updates.admission import existing
from agent.updates.audit import sign
from agent.updates.outlook import rollback_targets
from agent.updates.port import Caller, Change, ConflictError, UnknownNameError
from agent.updates.published import DeploymentFacts


def named(tx: Reader, name: DeploymentName) -> Deployment:
    deployment = tx.deployment(name)
    if deployment is None:
        raise UnknownNameError(f"no deployment {name}")
    return deployment


def current(tx: Reader, name: DeploymentName) -> Revision:
    """The revision that an update starts from: what serves or served, else what was tried."""
    named(tx, name)
    deployment = existing(tx, name)
    return recorded_revision(tx, name, deployment.active_revision or deployment.last_revision)


def recorded_revision(tx: Reader, name: DeploymentName, number: int) -> Revision:
    revision = tx.revision(name, number)
    if revision is None:
        raise UnknownNameError(f"no revision {number} of {name}")
    return revision


def running(tx: Reader, name: DeploymentName) -> Update:
    named(tx, name)
    update = tx.running_update(name)
    if update is None:
        raise ConflictError("no_update", f"no update of {name} is running")
    return update


def still_there(name: DeploymentName, facts: DeploymentFacts | None) -> ConflictError:
    """Why a deployment that is to run already is not started."""
    if facts is None or facts.status is not DeploymentStatus.WAITING_FOR_SECRETS:
        return ConflictError("running", f"deployment {name} runs already")
    return ConflictError(
        "waiting_for_secrets",
        f"deployment {name} starts by itself once its secrets are here: "
        f"enclave-agent secrets set {name} K=@FILE (status {name} says which)",
    )


def flag(tx: Transaction, update: Update, caller: Caller, **flags: bool) -> Update:
    after = msgspec.structs.replace(update, **flags)
    tx.put_update(after)
    event = EventDraft(
        kind="request", deployment=update.deployment, update=update.id, to=next(iter(flags))
    )
    sign(tx, event, caller)
    return after


def values(change: Change) -> Mapping[str, str | None] | None:
    return {} if change.secrets is msgspec.UNSET else change.secrets


def rollback_target(tx: Reader, name: DeploymentName, to: str | int | None) -> Revision:
    deployment = named(tx, name)
    served = rollback_targets(tx, deployment)
    if to is None:
        if not served:
            raise ConflictError("nothing_to_roll_back_to", f"{name} served no other revision")
        return served[0]
    for revision in [*served, *tx.revisions(name)]:
        if to in (revision.tag, revision.number, str(revision.number)):
            return revision
    raise UnknownNameError(f"{name} has no revision {to}")
