"""The end of an enclave that an update stops: the old one, or the new one that failed. Pure."""

from __future__ import annotations

import msgspec

from agent.model.enclave import Enclave, Lifecycle
from agent.model.update import Update
from agent.updates.planner.stop_stages import advance, begun, why_unasked
from agent.updates.planner.transitions import enclave_event, note
from agent.updates.planner.types import Plan, Situation, Write, act


def mark_stopping(s: Situation, update: Update, row: Enclave, stopping: Enclave) -> Plan:
    """Persist that it is to be stopped, and from which stage on."""
    event = enclave_event(stopping, row.lifecycle, why_unasked(s, row))
    return Plan(write=Write(update=update, put_enclaves=(stopping,), events=(event,)))


def end_old(s: Situation, update: Update) -> Plan | None:
    """The stop of a stop_then_start, once decided, is finished; None when it is.

    Refuse first; what is established is delivered while its guest finishes.
    """
    if not s.route_applied:
        return act(s.apply_route)
    if update.old_stopped_at is None:
        return note(s, old_stopped_at=s.now)
    old = s.enclaves.get(update.from_enclave) if update.from_enclave else None
    if old is None:
        return None
    if old.lifecycle is not Lifecycle.STOPPING:
        unasked = old.revision in s.deaf  # now: its own stop may be what teaches it
        noted = msgspec.structs.replace(update, stopped_unasked=unasked)
        return mark_stopping(s, noted, old, begun(s, old))
    return advance(s, old, update, urgent=True)
