"""Transactions on what is remembered of a GPU: set a quarantine, lift it, forget the GPU."""

from __future__ import annotations

import msgspec

from agent.inventory.port import Chain, UnknownGpuError
from agent.inventory.preparation.records import forgive
from agent.model.event import EventDraft
from agent.model.gpu import KnownGpu, Quarantine
from agent.model.identity import KnownDevices
from agent.model.ids import Bdf
from agent.store.port import Reader, Transaction

_ANEW = "what it failed at is tried anew, and its resets are counted anew"


def set_quarantine(tx: Transaction, bdf: Bdf, wanted: Quarantine) -> None:
    """With an event. Raises UnknownGpuError."""
    tx.put_known_gpu(msgspec.structs.replace(_row_at(tx, bdf), quarantine=wanted))
    tx.append(_event(bdf, "set", wanted.actor, wanted.reason))


def lift_quarantine(tx: Transaction, bdf: Bdf, actor: str, chain: Chain) -> None:
    """With an event, if there is one. What was given up is tried anew, and whose certificates are
    there is learned anew. Raises UnknownGpuError.
    """
    row = _row_at(tx, bdf)
    tried = forgive(tx, bdf)
    if _forget_devices(tx, bdf):
        event = _event(bdf, "forgotten", actor, "whose certificates are there is learned anew")
        chain(tx, msgspec.structs.replace(event, kind="gpu_identity"))
    if row.quarantine is not None:
        tx.put_known_gpu(msgspec.structs.replace(row, quarantine=None))
        chain(tx, _event(bdf, "lifted", actor, row.quarantine.reason))
    elif tried:
        chain(tx, _event(bdf, "lifted", actor, _ANEW))


def forget(tx: Transaction, bdf: Bdf, actor: str, chain: Chain) -> None:
    """As if it had never been here. Raises UnknownGpuError."""
    tx.delete_known_gpu(_row_at(tx, bdf).key)
    _forget_devices(tx, bdf)
    chain(tx, EventDraft(kind="gpu", gpu=bdf, from_="absent", to="forgotten", actor=actor))


def _forget_devices(tx: Transaction, bdf: Bdf) -> bool:
    """Of every set of places that this one is in; whether there was any."""
    found = [row for row in tx.identities(KnownDevices) if bdf in row.places]
    for row in found:
        tx.delete_identity(row)
    return bool(found)


def _row_at(tx: Reader, bdf: Bdf) -> KnownGpu:
    row = next((row for row in tx.known_gpus() if row.bdf == bdf), None)
    if row is None:
        raise UnknownGpuError(bdf)
    return row


def _event(bdf: Bdf, to: str, actor: str, reason: str) -> EventDraft:
    return EventDraft(kind="gpu_quarantine", gpu=bdf, to=to, reason=reason, actor=actor)
