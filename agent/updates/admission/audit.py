"""Who asked for what, in the chain; and the epoch that tells a coordinator from its past self.

Whatever a caller changes is signed with `sign`, in the transaction of the change itself. So a
coordinator whose epoch is over changes nothing any more from the moment on at which a higher one
is recorded, also with a request that was let in before it.
"""

from __future__ import annotations

import msgspec

from agent.model.event import EventDraft
from agent.store.port import Reader, Transaction
from agent.updates.errors import EpochLeapError, StaleEpochError
from agent.updates.orders import Caller

_EPOCH = "coordinator_epoch"  # a key of the store's meta table
# An epoch is a generation of the fleet times 2^36, and a count within it (docs/coordinator.md).
GENERATION = 1 << 36
MOST_GENERATIONS = 64


def highest_epoch(tx: Reader) -> int:
    """The highest that was ever seen since the last reset; 0 if none was."""
    return int(tx.meta(_EPOCH) or 0)


def see_epoch(tx: Transaction, epoch: int, actor: str) -> None:
    """Take note of it. Raises StaleEpochError if it is lower than the highest, EpochLeapError if
    it is more than 64 generations above it. Who has seen none takes the first, whatever it is.
    """
    highest = highest_epoch(tx)
    if epoch < highest:
        raise StaleEpochError(epoch, highest)
    if highest and epoch - highest > MOST_GENERATIONS * GENERATION:
        raise EpochLeapError(epoch, highest)
    if epoch > highest:
        _set(tx, highest, epoch, actor)


def reset_epoch(tx: Transaction, caller: Caller) -> int:
    """Forget the highest, for a coordinator that was restored; returns what it was."""
    highest = highest_epoch(tx)
    if highest:
        _set(tx, highest, 0, caller.name)
    return highest


def sign(tx: Transaction, draft: EventDraft, caller: Caller) -> None:
    """Chain what a caller asked for, with its name and epoch. Raises StaleEpochError."""
    if caller.epoch is not None:
        see_epoch(tx, caller.epoch, caller.name)
    epoch = msgspec.UNSET if caller.epoch is None else caller.epoch
    tx.append(msgspec.structs.replace(draft, actor=caller.name, epoch=epoch))


def _set(tx: Transaction, before: int, after: int, actor: str) -> None:
    tx.set_meta(_EPOCH, str(after))
    kind = "coordinator_epoch"
    tx.append(EventDraft(kind=kind, from_=str(before), to=str(after), actor=actor))
