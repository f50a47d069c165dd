"""The rows of GPU conditions: what may begin, what is left after it. Inside transactions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from agent.errors import AgentError, describe
from agent.inventory.preparation.cards import asked_for
from agent.inventory.preparation.errors import (
    GpuOwnedError,
    PreparationError,
    ResetsSpentError,
)
from agent.inventory.preparation.modes import ToolReport
from agent.inventory.preparation.retries import (
    HOUR_S,
    after_failure,
    after_report,
    resets_spent,
)
from agent.model.clock import Instant, within
from agent.model.event import EventDraft
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, EnclaveId
from agent.model.lease import ClaimKind
from agent.model.preparation import GpuCondition, is_clean, is_qualified
from agent.store.port import Reader, Transaction


class DevicePlace(NamedTuple):
    """Where a device sits. `board`: all that is brought to another mode together with it.

    `mode_kinds`: the kinds of mode that it has, as the tool names them. `viable`: its IOMMU group
    can be taken; else it is left to whoever has it. `left_alone`: why it is not ours to take.
    `asks_for_reset`: a reset is what would mend what is wrong with it.
    """

    board: tuple[Bdf, ...]
    mode_kinds: tuple[str, ...] = ("cc",)
    quarantined: bool = False
    viable: bool = True
    asks_for_reset: bool = False
    left_alone: str | None = None


def mode_kinds(place: DevicePlace | None) -> tuple[str, ...]:
    """The kinds of mode of what sits there."""
    return place.mode_kinds if place else ("cc",)


def rows_of(tx: Reader) -> dict[Bdf, GpuCondition]:
    return {row.bdf: row for row in tx.gpu_conditions()}


def owners(tx: Reader) -> dict[str, str]:
    """Who claims which device."""
    return {claim.key: claim.holder for claim in tx.claims() if claim.kind == ClaimKind.GPU}


def unowned_dirty(tx: Reader) -> list[Bdf]:
    """What is to be requalified: dirty, and nobody's."""
    return unowned(tx, [row.bdf for row in tx.gpu_conditions() if not is_clean(row)])


def unowned(tx: Reader, devices: Collection[Bdf]) -> list[Bdf]:
    """Those that nobody has, not even a lease."""
    owned = owners(tx)
    return [bdf for bdf in devices if bdf not in owned]


def ppcie_in_use(tx: Reader, board: Collection[Bdf], owner: EnclaveId | None) -> bool:
    """Whether somebody else has a device of the board in `ppcie`, where all hang together."""
    known, owned = rows_of(tx), owners(tx)
    return any(
        bdf in known and known[bdf].mode is CcMode.PPCIE and owned.get(bdf) not in (None, owner)
        for bdf in board
    )


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
    """Record that work begins; returns those that are to be reset. Raises GpuOwnedError.

    They are the dirty ones, and those that nobody asked for yet: whose they were is not known.
    """
    prove_owner(tx, devices, owner)
    known = rows_of(tx)
    dirty = {bdf for bdf in devices if not is_qualified(known.get(bdf))}
    for bdf in devices:
        before = known.get(bdf) or GpuCondition(bdf=bdf, clean=True, since=now)
        after = msgspec.structs.replace(asked_for(tx, before), clean=False, busy=True, since=now)
        put(tx, before, after, owner)
    return frozenset(dirty)


def finish(
    tx: Transaction,
    devices: Collection[Bdf],
    modes: Mapping[Bdf, CcMode | None],
    now: Instant,
    told: Mapping[Bdf, str] | None = None,
) -> None:
    """Everything was proven: clean, and in that mode. `told`: of those that are in none, why."""
    known = rows_of(tx)
    for bdf in devices:
        before, mode = known[bdf], modes.get(bdf)
        after = msgspec.structs.replace(
            before,
            clean=True,
            busy=False,
            mode=mode,
            mode_told=(told or {}).get(bdf) if mode is None else None,
            fault=None,
            mend=None,
            failures=0,
            mode_failures=before.mode_failures if mode is None else 0,
            since=now,
        )
        put(tx, before, after, None)


def keep_limits(
    tx: Transaction,
    reports: Mapping[Bdf, ToolReport],
    kinds_of: Callable[[Bdf], Sequence[str]],
) -> dict[Bdf, str]:
    """What the tool says that devices lack; returns which are of no use for it, and why."""
    known, condemned = rows_of(tx), dict[Bdf, str]()
    for bdf, report in reports.items():
        ending = after_report(known[bdf], report, kinds_of(bdf))
        if ending.row != known[bdf]:
            tx.put_gpu_condition(ending.row)
        if ending.quarantine is not None:
            condemned[bdf] = ending.quarantine
    return condemned


def give_up(
    tx: Transaction,
    devices: Collection[Bdf],
    error: AgentError,
    now: Instant,
    kinds_of: Callable[[Bdf], Sequence[str]],
) -> dict[Bdf, str]:
    """It failed somewhere: nothing is known of them but that they are dirty.

    Returns which are to be quarantined for it, and why.
    """
    known, condemned, fault = rows_of(tx), dict[Bdf, str](), describe(error)
    culprit = error.bdf if isinstance(error, PreparationError) else None
    for bdf in devices:
        before = known[bdf]
        after = msgspec.structs.replace(
            before,
            clean=False,
            busy=False,
            mode=None,
            mode_told=None,
            fault=fault,
            mend=error.mend if isinstance(error, PreparationError) else None,
            since=now,
        )
        if bdf == culprit:
            after, why = after_failure(after, error, kinds_of(bdf))
            condemned |= {bdf: why} if why else {}
        put(tx, before, after, None, fault)
    return condemned


def count_reset(tx: Transaction, bdf: Bdf, now: Instant, times: int = 1) -> None:
    """It is about to be reset. Raises ResetsSpentError, and then it must not be."""
    row = rows_of(tx).get(bdf) or GpuCondition(bdf=bdf, clean=False, since=now)
    if why := resets_spent(row, now):
        raise ResetsSpentError(bdf, why)
    resets = (*within(row.resets, HOUR_S, now), *[now] * times)
    tx.put_gpu_condition(msgspec.structs.replace(row, resets=resets))


def note_fault(tx: Transaction, bdf: Bdf, error: AgentError) -> None:
    """Why nothing was begun; no event, since nothing has changed."""
    row = rows_of(tx).get(bdf)
    if row is not None and row.fault != describe(error):
        mend = error.mend if isinstance(error, PreparationError) else None
        tx.put_gpu_condition(msgspec.structs.replace(row, fault=describe(error), mend=mend))


def forgive(tx: Transaction, bdf: Bdf) -> bool:
    """A person says that it is mended: what it was found unable to do is tried anew, and its
    resets are counted anew.

    Whether there was anything.
    """
    row = rows_of(tx).get(bdf)
    if row is None:
        return False
    failed = bool(row.limits or row.failures or row.mode_failures or row.mode_told)
    if not (failed or row.resets):
        return False
    after = msgspec.structs.replace(row, resets=())
    if failed:
        after = msgspec.structs.replace(
            after, limits=(), failures=0, mode_failures=0, mode=None, mode_told=None
        )
    tx.put_gpu_condition(after)
    return True


def set_back(tx: Transaction, devices: Collection[Bdf], now: Instant) -> None:
    """What was to be done with them is done, and they are to be requalified."""
    known = rows_of(tx)
    for bdf in devices:
        before = known[bdf]
        after = msgspec.structs.replace(
            before, clean=False, busy=False, fault=None, mend=None, failures=0, since=now
        )
        put(tx, before, after, None, "found again")


def mark_used(tx: Transaction, devices: Collection[Bdf], enclave: EnclaveId, now: Instant) -> None:
    """An enclave has run on them: they are to be requalified before anybody else does."""
    known = rows_of(tx)
    for bdf in devices:
        before = known.get(bdf) or GpuCondition(bdf=bdf, clean=True, since=now)
        if is_clean(before):
            after = msgspec.structs.replace(asked_for(tx, before), clean=False, since=now)
            put(tx, before, after, enclave)


def count_launch(tx: Transaction, devices: Collection[Bdf], *, failed: bool) -> None:
    """A launch on these did not come up, or did."""
    known = rows_of(tx)
    for bdf in devices:
        if bdf in known:
            count = known[bdf].failed_launches + 1 if failed else 0
            tx.put_gpu_condition(msgspec.structs.replace(known[bdf], failed_launches=count))


def distrust(tx: Transaction, devices: Collection[Bdf], now: Instant, why: str) -> None:
    """Have these requalified before anybody is given them. `why`: for the event."""
    known = rows_of(tx)
    for bdf in devices:
        before = known.get(bdf) or GpuCondition(bdf=bdf, clean=True, since=now)
        after = msgspec.structs.replace(before, clean=False, since=now)
        put(tx, before, after, None, why)


def word(row: GpuCondition) -> str:
    """The one word for a condition. Another try after a failure is no news."""
    if row.busy and not row.failures:
        return "preparing"
    return "clean" if is_clean(row) else "dirty"


def put(
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
