"""That another processor is this machine's: said by a person on the host, and chained."""

from __future__ import annotations

from agent.model.event import EventDraft
from agent.model.identity import KnownMachine
from agent.model.ids import DeploymentName
from agent.store.port import Transaction
from agent.updates.admission.audit import sign
from agent.updates.orders import Caller, ChipChange


def accept_chip(
    tx: Transaction, name: DeploymentName, row: KnownMachine, caller: Caller
) -> ChipChange:
    """Remember it in the place of what was known. `name`: whose evidence names it."""
    known = {one.key: one.chip for one in tx.identities(KnownMachine)}
    old = known.get(row.key)
    tx.put_identity(row)
    sign(tx, EventDraft(kind="chip", deployment=name, from_=old, to=row.chip), caller)
    return ChipChange(source=row.source, old=old, new=row.chip)
