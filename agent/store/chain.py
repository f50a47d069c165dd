"""Proof that the kept events are all there, in order and as they were written. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.model.event import STORE_RESTORED, Event, hash_of


class ChainBreak(msgspec.Struct, frozen=True, kw_only=True):
    """The first place at which the chain does not hold."""

    sequence: int
    reason: str


def verify_chain(
    events: Iterable[Event], checkpoint: tuple[int, str], newest: int | None = None
) -> ChainBreak | None:
    """Check every link from the checkpoint on; None when all hold.

    An event that was changed, left out, put elsewhere or added is found. That the newest ones
    were cut off shows only against `newest`, a sequence known from elsewhere. Sequences may be
    missing before a `store_restored` alone, which follows the event before the gap by its hash.
    """
    sequence, previous = checkpoint
    for event in events:
        sequence += 1
        if event.kind == STORE_RESTORED:
            sequence = max(sequence, event.sequence)
        if event.sequence != sequence:
            reason = f"event {event.sequence} stands where {sequence} belongs"
            return ChainBreak(sequence=sequence, reason=reason)
        if event.previous != previous:
            reason = f"event {sequence} does not follow the one before it"
            return ChainBreak(sequence=sequence, reason=reason)
        if hash_of(msgspec.to_builtins(event)) != event.hash:
            reason = f"event {sequence} is not what was written"
            return ChainBreak(sequence=sequence, reason=reason)
        previous = event.hash
    if newest is not None and sequence != newest:
        reason = f"the events after {sequence} are missing, up to {newest}"
        return ChainBreak(sequence=sequence + 1, reason=reason)
    return None
