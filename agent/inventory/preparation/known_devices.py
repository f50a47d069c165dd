"""Which devices are known at a start, and whose modes are to be learned. In transactions."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.inventory.preparation.cards import addresses
from agent.inventory.preparation.records import DevicePlace, owners, put, rows_of
from agent.model.clock import Instant
from agent.model.ids import Bdf
from agent.model.preparation import GpuCondition, is_clean
from agent.store.port import Reader, Transaction


def recover(tx: Transaction, now: Instant) -> None:
    """After a start of the agent: nobody is at work on anything.

    After a reboot a BDF may be another device, so that of all only that they were used is kept,
    where each is now; if anything was unclean, everything that was known is dirty.
    """
    rows = tx.gpu_conditions()
    if any(now.since(row.since) is None for row in rows):
        clean, moved = all(map(is_clean, rows)), addresses(tx)
        for row in rows:
            tx.delete_gpu_condition(row.bdf)
        for row in rows:
            if is_clean(row) and not row.used:
                continue  # it was only seen; what is at its address now is seen anew
            bdf = moved.get(row.card or "", row.bdf)
            after = GpuCondition(bdf=bdf, clean=clean, used=row.used, card=row.card, since=now)
            tx.put_gpu_condition(after)
        return
    for row in rows:
        if row.busy:
            after = msgspec.structs.replace(row, busy=False, since=now)
            put(tx, row, after, None, "the agent ended in the middle")


def note_seen(tx: Transaction, places: Mapping[Bdf, DevicePlace], now: Instant) -> None:
    """Have a row of each that is there: seen, and not touched."""
    for bdf in places.keys() - rows_of(tx).keys():
        tx.put_gpu_condition(GpuCondition(bdf=bdf, clean=True, since=now))


def to_learn(tx: Reader, places: Mapping[Bdf, DevicePlace]) -> list[Bdf]:
    """Those whose mode is not known and that were asked for: themselves, or a board of theirs.

    The mode is the board's: who asks for one GPU of it asks for the mode of all. One that says
    what is no mode in force and pending has been asked already: the next change of mode mends it.
    """
    known, owned = rows_of(tx), owners(tx)
    asked = {bdf for bdf, row in known.items() if row.used} | set(owned)
    found = []
    for bdf, place in places.items():
        row = known.get(bdf)
        learned = row is not None and (row.mode or row.mode_told or not is_clean(row))
        wanted = bdf in asked or not asked.isdisjoint(place.board)
        if wanted and not learned and bdf not in owned:
            found.append(bdf)
    return sorted(found)
