"""Admission: a request becomes rows, all in one transaction, or is refused with reasons.

The decision itself is `agent.capacity` (pure). Here it is asked with what is recorded at that very
moment, and its grant is recorded in the same transaction: the revision, the update, the new
enclave's row (which is its allocation) and the exclusive claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent.capacity.supply import HostSupply, charged
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import DeploymentName, LeaseId
from agent.model.reasons import Reason, ReasonCode, Strategy
from agent.model.release import PUBLIC_IMAGE, Release
from agent.model.resources import Listen, Publish
from agent.model.revision import Deployment, ProbeOptions, Revision, Route, Wish, guest_domain_of
from agent.model.update import Update
from agent.probes.choice import choose_path
from agent.releases.layout import image_version_of
from agent.store.port import Reader, Transaction
from agent.updates.admission.audit import sign
from agent.updates.admission.judging import judge, question
from agent.updates.admission.lease_rows import expire, spend
from agent.updates.admission.rows import (
    Options,
    Terms,
    admitted_event,
    claim_all,
    new_enclave,
    new_update,
)
from agent.updates.errors import ConflictError, FieldError, RefusedError

# Which of a deployment's secrets (name → version) have no value on this host.
Missing = Callable[[DeploymentName, Mapping[str, int]], tuple[str, ...]]

_REFUSING = Route(generation=0, enclave=None)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has been checked field by field. `secrets`: name → version to be given.

    `brought`: the listeners that its deployment did not have before, each with its field.
    """

    name: DeploymentName
    release: Release
    listen: Listen
    publish: tuple[Publish, ...]
    brought: tuple[tuple[str, Listen], ...] = ()
    domain: str | None
    probes: ProbeOptions = ProbeOptions()
    guest_domain: str | None = None
    variables: Mapping[str, str]
    secrets: Mapping[str, int]
    staging: bool = False
    strategy: Strategy | None = None
    revert_after_switch: bool = True
    restart_old_on_failure: bool = False
    lease: str | None = None
    obstacles: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()


def new_revision(ask: Ask, number: int, now: Instant) -> Revision:
    """The revision that a request describes."""
    release = ask.release
    path = choose_path(release.shim, ask.probes.path)
    return Revision(
        deployment=ask.name,
        number=number,
        repo=release.repo,
        tag=release.tag,
        release_digest=release.digest,
        demand=release.demand,
        listen=ask.listen,
        publish=ask.publish,
        domain=ask.domain,
        guest_domain=ask.guest_domain,
        dummy_attestation=release.dummy_attestation,
        variables=dict(ask.variables),
        secrets=dict(ask.secrets),
        secret_names=release.secret_names,
        fetches_secrets=release.fetches_secrets,
        inbound_ports=release.inbound_ports,
        start_period_s=release.start_period_s,
        boot_wait_s=release.boot_wait_s,
        tls_mode=release.tls_mode,
        container_names=release.container_names,
        container_images=release.container_images,
        probes=ask.probes,
        health_path=path,
        health_guarded=path is not None and release.shim.guards(path.partition("?")[0]),
        debug=release.debug,
        image_version=image_version_of(release.cvm_version),
        image_source=release.cvm_source or PUBLIC_IMAGE,
        created_at=now,
    )


def admit_new(tx: Transaction, ask: Ask, terms: Terms) -> Update:
    """Create a deployment with its first update. Raises ConflictError or RefusedError."""
    if tx.deployment(ask.name) is not None:
        raise ConflictError("exists", f"deployment {ask.name} exists already; update it instead")
    _check_brought(ask, terms.supply)
    revision = new_revision(ask, 1, terms.now)
    deployment = Deployment(
        name=ask.name,
        wish=Wish.RUN,
        active_slot=None,
        active_revision=None,
        route=_REFUSING,
        last_revision=1,
        created_at=terms.now,
    )
    return _admit(tx, deployment, revision, _options(ask), terms)


def admit_change(tx: Transaction, ask: Ask, terms: Terms) -> Update:
    """Update an existing deployment to a new revision. Raises ConflictError or RefusedError."""
    deployment = existing(tx, ask.name)
    _check_brought(ask, terms.supply)
    revision = new_revision(ask, deployment.last_revision + 1, terms.now)
    return _admit(tx, deployment, revision, _options(ask), terms)


def _check_brought(ask: Ask, supply: HostSupply) -> None:
    """Raises FieldError for a new listener that no deployment may have on this host."""
    for path, listen in ask.brought:
        if fault := supply.listen_rules.fault(listen):
            raise FieldError(path, fault)


def admit_revision(
    tx: Transaction,
    name: DeploymentName,
    number: int,
    options: Options,
    terms: Terms,
) -> Update:
    """Update a deployment to a revision that it had. Raises ConflictError or RefusedError."""
    deployment = existing(tx, name)
    revision = tx.revision(name, number)
    if revision is None:
        raise ConflictError("no_such_revision", f"{name} has no revision {number}")
    return _admit(tx, deployment, revision, options, terms)


def existing(tx: Reader, name: DeploymentName) -> Deployment:
    """A deployment that may be updated. Raises ConflictError."""
    deployment = tx.deployment(name)
    if deployment is None or deployment.wish is Wish.DELETE:
        raise ConflictError("deleting", f"deployment {name} is being deleted")
    if any(row.lifecycle is Lifecycle.STOPPING for row in tx.enclaves(name)) and (
        tx.running_update(name) is None
    ):
        raise ConflictError("stopping", f"deployment {name} is still being stopped; try again")
    return deployment


def _options(ask: Ask) -> Options:
    return Options(
        staging=ask.staging,
        strategy=ask.strategy,
        revert_after_switch=ask.revert_after_switch,
        restart_old_on_failure=ask.restart_old_on_failure,
        lease=ask.lease,
        obstacles=ask.obstacles,
        warnings=ask.warnings,
    )


def _admit(
    tx: Transaction,
    deployment: Deployment,
    revision: Revision,
    options: Options,
    terms: Terms,
) -> Update:
    name, now = deployment.name, terms.now
    demand = charged(revision.demand, terms.supply)
    revision = msgspec.structs.replace(
        revision,
        demand=demand,
        evidence_edition=options.evidence_edition,
        guest_domain=revision.own_guest_domain
        or guest_domain_of(name, terms.supply.default_domain),
    )
    expire(tx, now)
    admission = judge(tx, question(tx, name, revision, options), terms.supply, now)
    if admission.grant is None:
        raise RefusedError(admission.decision)
    old = _active(tx, deployment)
    enclave = new_enclave(deployment, revision, admission.grant, old, now)
    update = new_update(revision, options, admission.decision, enclave, terms)
    if old is not None:
        before = tx.revision(name, old.revision)
        update = msgspec.structs.replace(
            update,
            from_revision=old.revision,
            from_enclave=old.id,
            from_tag=before.tag if before else None,
        )
    tx.put_deployment(
        msgspec.structs.replace(
            deployment,
            wish=Wish.RUN,
            restart_old_revision=None,
            last_revision=max(deployment.last_revision, revision.number),
        )
    )
    tx.put_revision(revision)
    tx.put_update(update)
    tx.put_enclave(enclave)
    if options.lease:
        spend(tx, LeaseId(options.lease), update.id, terms.caller)
    claim_all(tx, revision, enclave, admission.grant)
    sign(tx, admitted_event(update), terms.caller)
    return update


def _active(tx: Reader, deployment: Deployment) -> Enclave | None:
    for row in tx.enclaves(deployment.name):
        if row.slot is deployment.active_slot:
            return row
    return None


def secrets_missing(names: list[str]) -> Reason:
    """The refusal of a release whose secrets were not supplied."""
    return Reason(
        code=ReasonCode.SECRETS_MISSING,
        detail=f"no value for: {', '.join(names)}",
        needed=len(names),
        available=0,
    )


def secrets_gone(names: Sequence[str]) -> Reason:
    """The refusal of a revision whose secrets' values are not on this host any more."""
    return Reason(
        code=ReasonCode.SECRETS_MISSING,
        detail=f"values of {', '.join(names)} are not on this host; supply them again",
        needed=len(names),
        available=0,
    )
