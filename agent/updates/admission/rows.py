"""The rows of an admission: the update, the new enclave (its allocation), exclusive claims."""

from __future__ import annotations

import uuid

import msgspec

from agent.capacity.supply import Grant, HostSupply
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.event import EventDraft
from agent.model.evidence_edition import EVIDENCE_EDITION
from agent.model.ids import new_enclave_id, new_update_id
from agent.model.lease import Claim, ClaimKind
from agent.model.reasons import DecidedStrategy, Decision, Reason, Strategy
from agent.model.revision import Deployment, Revision, Slot
from agent.model.update import Preparing, Update
from agent.store.port import Transaction
from agent.updates.orders import Caller


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Under which an admission is made: what the host has, when, and who asks."""

    supply: HostSupply
    now: Instant
    caller: Caller


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How an update to an existing revision is to go. `evidence_edition`: by which defaults its
    evidence is judged; today's, but for what is brought back.
    """

    staging: bool = False
    strategy: Strategy | None = None
    revert_after_switch: bool = True
    restart_old_on_failure: bool = False
    lease: str | None = None
    obstacles: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    evidence_edition: int = EVIDENCE_EDITION


def new_enclave(
    deployment: Deployment, revision: Revision, grant: Grant, old: Enclave | None, now: Instant
) -> Enclave:
    slot = deployment.active_slot.other if old and deployment.active_slot else Slot.BLUE
    replaces = old.id if old and old.id in grant.replaces else None
    assert grant.address is not None
    return Enclave(
        id=new_enclave_id(),
        deployment=deployment.name,
        slot=slot,
        revision=revision.number,
        lifecycle=Lifecycle.PLANNED,
        launch_uuid=str(uuid.uuid4()),
        address=grant.address,
        gpus=grant.gpus,
        switches=grant.switches,
        gpu_mode=grant.gpu_mode,
        ports_by_board=True,
        memory_mib=revision.demand.memory_mib,
        vcpus=revision.demand.vcpus,
        replaces=replaces,
        created_at=now,
        evidence_edition=revision.evidence_edition,
    )


def new_update(
    revision: Revision,
    options: Options,
    decision: Decision,
    enclave: Enclave,
    terms: Terms,
) -> Update:
    assert decision.strategy is not DecidedStrategy.REFUSE
    return Update(
        id=new_update_id(),
        deployment=revision.deployment,
        strategy=Strategy(decision.strategy),
        staging=options.staging,
        revision=revision.number,
        tag=revision.tag,
        enclave=enclave.id,
        slot=enclave.slot,
        state=Preparing(),
        revert_after_switch=options.revert_after_switch,
        restart_old_on_failure=options.restart_old_on_failure,
        insisted=options.strategy,
        requester=terms.caller.name,
        request=terms.caller.request,
        epoch=terms.caller.epoch,
        reasons=decision.reasons,
        warnings=decision.warnings,
        created_at=terms.now,
    )


def claim_all(tx: Transaction, revision: Revision, enclave: Enclave, grant: Grant) -> None:
    for key in revision.listen_claims:
        tx.claim(Claim(kind=ClaimKind.LISTEN, key=key, holder=enclave.deployment))
    held = {(claim.kind, claim.key): claim.holder for claim in tx.claims()}
    devices = (*enclave.gpus, *enclave.switches)
    wanted = [(ClaimKind.ADDRESS, enclave.address), *((ClaimKind.GPU, one) for one in devices)]
    for kind, key in wanted:
        if held.get((kind, key)) in grant.replaces:
            continue  # passes over when the enclave that holds it is gone
        tx.claim(Claim(kind=kind, key=key, holder=enclave.id))


def admitted_event(update: Update) -> EventDraft:
    return EventDraft(
        kind="update",
        deployment=update.deployment,
        enclave=update.enclave,
        update=update.id,
        to=f"{update.status}/{update.step}",
        reason=str(update.strategy),
    )
