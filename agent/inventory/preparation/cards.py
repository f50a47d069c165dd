"""Which card a record is about, wherever a reboot has put it."""

from __future__ import annotations

import msgspec

from agent.model.ids import Bdf
from agent.model.preparation import GpuCondition
from agent.store.port import Reader


def asked_for(tx: Reader, row: GpuCondition) -> GpuCondition:
    """The row of a device that somebody has, or asks for."""
    card = next((one.key for one in tx.known_gpus() if one.bdf == row.bdf), row.card)
    return msgspec.structs.replace(row, used=True, card=card)


def addresses(tx: Reader) -> dict[str, Bdf]:
    """Where the cards that are known are now, by each name that they may have had."""
    found = dict[str, Bdf]()
    for row in tx.known_gpus():
        if row.bdf is not None and row.present:
            found |= {row.key: row.bdf, f"at:{row.location}": row.bdf}
    return found
