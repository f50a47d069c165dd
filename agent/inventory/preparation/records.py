"""The rows of GPU conditions: what may begin, what is left after it. Inside transactions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from agent.inventory.preparation.errors import GpuOwnedError
from agent.model.clock import Instant
from agent.model.event import EventDraft
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, EnclaveId
from agent.model.lease import ClaimKind
from agent.model.preparation import GpuCondition
from agent.store.port import Reader, Transaction


class DevicePlace(NamedTuple):
    """Where a device sits. `board`: all that is brought to another mode together with it.

    `mode_kinds`: the kinds of mode that it has, as the tool names them. `viable`: its IOMMU group
    can be taken; else it is left to whoever has it. `asks_for_reset`: a reset is what would mend
    what is wrong with it.
    """

    board: tuple[Bdf, ...]
    mode_kinds: tuple[str, ...] = ("cc",)
    quarantined: bool = False
    viable: bool = True
    asks_for_reset: bool = False


def rows_of(tx: Reader) -> dict[Bdf, GpuCondition]:
    return {row.bdf: row for row in tx.gpu_conditions()}


def owners(tx: Reader) -> dict[str, str]:
    """Who claims which device."""
    return {claim.key: claim.holder for claim in tx.claims() if claim.kind == ClaimKind.GPU}


def unowned_dirty(tx: Reader) -> list[Bdf]:
    """What is to be requalified: dirty, and nobody's."""
    return unowned(tx, [row.bdf for row in tx.gpu_conditions() if not row.clean])


def unowned(tx: Reader, devices: Collection[Bdf]) -> list[Bdf]:
    """Those that nobody has, not even a lease."""
    owned = owners(tx)
    return [bdf for bdf in devices if bdf not in owned]


def prove_owner(tx: Reader, devices: Collection[Bdf], owner: EnclaveId | None) -> None:
    """That these are that enclave's, or nobody's if None. Raises GpuOwnedError."""
    owned = owners(tx)
    for bdf in devices:
        holder = owned.get(bdf)
        if holder != owner:
            raise GpuOwnedError(bdf, f"is {holder}'s" if holder else "is nobody's any more")


def begin(
    tx: Transaction, devices: Collection[Bdf], owner: EnclaveId | None, now: Instant
) -> frozenset[Bdf]:
    """Record that work begins; returns those that were dirty. Raises GpuOwnedError."""
    prove_owner(tx, devices, owner)
    known = rows_of(tx)
    dirty = {bdf for bdf in devices if bdf in known and not known[bdf].clean}
    for bdf in devices:
        before = known.get(bdf) or GpuCondition(bdf=bdf, clean=True, since=now)
        after = msgspec.structs.replace(before, clean=False, busy=True, since=now)
        _put(tx, before, after, owner)
    return frozenset(dirty)


def finish(
    tx: Transaction,
    devices: Collection[Bdf],
    modes: Mapping[Bdf, CcMode | None],
    now: Instant,
) -> None:
    """Everything was proven: clean, and in that mode."""
    known = rows_of(tx)
    for bdf in devices:
        before = known[bdf]
        after = msgspec.structs.replace(
            before, clean=True, busy=False, mode=modes.get(bdf), fault=None, since=now
        )
        _put(tx, before, after, None)


def give_up(tx: Transaction, devices: Collection[Bdf], fault: str, now: Instant) -> None:
    """It failed somewhere: nothing is known of them but that they are dirty."""
    known = rows_of(tx)
    for bdf in devices:
        before = known[bdf]
        after = msgspec.structs.replace(
            before, clean=False, busy=False, mode=None, fault=fault, since=now
        )
        _put(tx, before, after, None, fault)


def mark_used(tx: Transaction, devices: Collection[Bdf], enclave: EnclaveId, now: Instant) -> None:
    """An enclave has run on them: they are to be requalified before anybody else does."""
    known = rows_of(tx)
    for bdf in devices:
        before = known.get(bdf) or GpuCondition(bdf=bdf, clean=True, since=now)
        if before.clean:
            after = msgspec.structs.replace(before, clean=False, since=now)
            _put(tx, before, after, enclave)


def count_launch(tx: Transaction, devices: Collection[Bdf], *, failed: bool) -> None:
    """A launch on these did not come up, or did."""
    known = rows_of(tx)
    for bdf in devices:
        if bdf in known:
            count = known[bdf].failed_launches + 1 if failed else 0
            tx.put_gpu_condition(msgspec.structs.replace(known[bdf], failed_launches=count))


def recover(tx: Transaction, now: Instant) -> None:
    """After a start of the agent: nobody is at work on anything.

    After a reboot a BDF may be another device, so that all is forgotten; if anything was unclean,
    everything that was known is dirty.
    """
    rows = tx.gpu_conditions()
    if any(now.since(row.since) is None for row in rows):
        clean = all(row.clean for row in rows)
        for row in rows:
            tx.put_gpu_condition(GpuCondition(bdf=row.bdf, clean=clean, since=now))
        return
    for row in rows:
        if row.busy:
            after = msgspec.structs.replace(row, busy=False, since=now)
            _put(tx, row, after, None, "the agent ended in the middle")


def unknown(tx: Reader, present: Collection[Bdf]) -> list[Bdf]:
    """Those that are there and without a record, or without a mode."""
    known = {row.bdf for row in tx.gpu_conditions() if row.mode is not None or not row.clean}
    return sorted(bdf for bdf in unowned(tx, present) if bdf not in known)


def distrust(tx: Transaction, devices: Collection[Bdf], now: Instant, why: str) -> None:
    """Have these requalified before anybody is given them. `why`: for the event."""
    known = rows_of(tx)
    for bdf in devices:
        before = known.get(bdf) or GpuCondition(bdf=bdf, clean=True, since=now)
        after = msgspec.structs.replace(before, clean=False, since=now)
        _put(tx, before, after, None, why)


def word(row: GpuCondition) -> str:
    """The one word for a condition."""
    if row.busy:
        return "preparing"
    return "clean" if row.clean else "dirty"


def _put(
    tx: Transaction,
    before: GpuCondition,
    after: GpuCondition,
    owner: EnclaveId | None,
    reason: str | None = None,
) -> None:
    tx.put_gpu_condition(after)
    if word(before) != word(after):
        tx.append(
            EventDraft(
                kind="gpu",
                gpu=after.bdf,
                enclave=owner,
                from_=word(before),
                to=word(after),
                reason=reason,
            )
        )
