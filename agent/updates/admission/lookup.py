"""What a request is about: the row that it names, or the error that says why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.model.revision import Deployment, DeploymentStatus, Revision
from agent.model.update import Decided, Update
from agent.store.port import Reader, Transaction
from agent.updates.admission.admit import existing
from agent.updates.admission.audit import sign
from agent.updates.admission.rollbacks import Past, past_of
from agent.updates.admission.warm_rollback import warm_enclave
from agent.updates.errors import ConflictError, UnknownNameError
from agent.updates.orders import Caller, Change


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


def to_cancel(tx: Reader, name: DeploymentName, is_well: Callable[[Enclave], bool]) -> Update:
    """The running update, before its switch. Raises ConflictError that says how to go back."""
    deployment, update = named(tx, name), tx.running_update(name)
    back = way_back(tx, deployment)
    if update is None:
        newest = tx.updates(name, limit=1)
        detail = f"no update of {name} is running"
        if newest and newest[0].decided is Decided.COMPLETE:
            detail += f": the last one is completed; {back}"
        raise ConflictError("no_update", detail)
    if update.decided not in (Decided.SWITCH, Decided.COMPLETE):
        return update
    warm = warm_enclave(tx, deployment, update.from_revision) if update.from_revision else None
    if warm is None or not is_well(warm):
        back = f"wait until the update is completed; {back}"
    raise ConflictError("switched", f"traffic has switched already; {back}")


def way_back(tx: Reader, deployment: Deployment) -> str:
    """How to leave the version that serves, in words for a person."""
    before = version_before(tx, deployment, read_past(tx, deployment))
    if before is None:
        stop = f"enclave-agent stop {deployment.name}"
        return f"there is no older version to go back to; to stop this one: {stop}"
    return f"to go back: enclave-agent rollback {deployment.name} --to {before.tag}"


def still_there(name: DeploymentName, status: DeploymentStatus | None) -> ConflictError:
    """Why a deployment that is to run already is not started."""
    if status is not DeploymentStatus.WAITING_FOR_SECRETS:
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


def known_secrets(tx: Reader, name: DeploymentName) -> frozenset[str] | None:
    """Names that a release of the deployment declares, or that it was given; None: not known."""
    revisions = tx.revisions(name)
    if any(row.secret_names is None for row in revisions):
        return None
    found = {one for row in revisions for one in (*row.secrets, *(row.secret_names or ()))}
    return frozenset(found | tx.secret_versions(name).keys())


def values(change: Change) -> Mapping[str, str | None] | None:
    return {} if change.secrets is msgspec.UNSET else change.secrets


def rollback_target(tx: Reader, name: DeploymentName, to: str | int | None) -> Revision:
    """Raises ConflictError where there is nothing before, or what is named never served."""
    deployment = named(tx, name)
    if to is None:
        before = version_before(tx, deployment, read_past(tx, deployment))
        if before is None:
            raise ConflictError("nothing_to_roll_back_to", _nothing_before(tx, deployment))
        return before
    past = read_past(tx, deployment)
    meant = [row for row in tx.revisions(name) if to in (row.tag, row.number, str(row.number))]
    if not meant:
        raise UnknownNameError(f"{name} has no revision {to}")
    able = [row for row in meant if row.number not in past.tried]
    others = [row for row in able if row.number != deployment.active_revision]
    if not able:
        raise ConflictError(
            "never_served",
            f"revision {meant[0].number} ({meant[0].tag}) of {name} never served; to try that "
            f"version again: enclave-agent relaunch {name} --tag {meant[0].tag}",
        )
    return min(others or able, key=lambda row: _rank(row.number, past.served))


def read_past(tx: Reader, deployment: Deployment) -> Past:
    """What its updates say of its past."""
    return past_of(tx.updates(deployment.name, limit=_UPDATES), deployment.active_revision)


def version_before(tx: Reader, deployment: Deployment, past: Past) -> Revision | None:
    """The one that a rollback without a name goes to: another than what serves, and before it."""
    active = tx.revision(deployment.name, deployment.active_revision or 0)
    for number in past.before:
        revision = tx.revision(deployment.name, number)
        if revision is None:
            continue
        if number == deployment.active_revision or active is None:
            return revision
        if not _same_content(revision, active):
            return revision
    return None


def rollback_targets(tx: Reader, deployment: Deployment, past: Past) -> list[Revision]:
    """Revisions that once served and do not now: the version before first, then the latest.

    At most eight.
    """
    active = tx.revision(deployment.name, deployment.active_revision or 0)
    before = version_before(tx, deployment, past)
    found = {} if before is None else {before.number: before}
    for number in past.served:
        if len(found) == _MAX_ROLLBACKS:
            break
        revision = tx.revision(deployment.name, number)
        if revision is not None and not (active and _same_content(revision, active)):
            found.setdefault(number, revision)
    return list(found.values())


_MAX_ROLLBACKS = 8
_UPDATES = 200  # as many as are kept, and more


def _same_content(one: Revision, other: Revision) -> bool:
    """Whether they differ in nothing but number and time."""
    return one == msgspec.structs.replace(other, number=one.number, created_at=one.created_at)


def _rank(number: int, served: tuple[int, ...]) -> int:
    """The one that served last first, then what the kept updates do not tell of."""
    return served.index(number) if number in served else len(served)


def _nothing_before(tx: Reader, deployment: Deployment) -> str:
    name = deployment.name
    other = rollback_targets(tx, deployment, read_past(tx, deployment))
    if not other:
        return f"{name} served no other revision"
    return (
        f"no version of {name} served before this one; to go to one that served after it: "
        f"enclave-agent rollback {name} --to {other[0].number} ({other[0].tag})"
    )
