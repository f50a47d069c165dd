"""That another processor is this machine's: said by a person on the host, and chained."""

from __future__ import annotations

from agent.model.event import EventDraft
from agent.model.identity import KnownMachine, RefusedChip, known_processor
from agent.model.ids import DeploymentName
from agent.store.port import Transaction
from agent.updates.admission.audit import sign
from agent.updates.orders import Caller, ChipChange


def forget_refused_chip(tx: Transaction, name: DeploymentName) -> None:
    """What evidence of this deployment was refused for: there is no such deployment any more."""
    for refused in tx.identities(RefusedChip):
        if refused.deployment == name:
            tx.delete_identity(refused)


def accept_chip(
    tx: Transaction, name: DeploymentName, row: KnownMachine, caller: Caller
) -> ChipChange:
    """Remember it in the place of what was known. `name`: whose evidence names it. It is not one
    that evidence was refused for any more.
    """
    known = tx.identities(KnownMachine)
    before = known_processor(known, row.machine)
    old = before.chip if before is not None else None
    for former in known:
        if former.machine == row.machine and former.key != row.key:
            tx.delete_identity(former)
    tx.put_identity(row)
    for refused in tx.identities(RefusedChip):
        if (refused.source, refused.chip) == (row.source, row.chip):
            tx.delete_identity(refused)
    sign(tx, EventDraft(kind="chip", deployment=name, from_=old, to=row.chip), caller)
    return ChipChange(source=row.source, old=old, new=row.chip)
