"""What the engine asks of whoever prepares GPUs, and what it says of who has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from agent.capacity.boards import as_recorded
from agent.capacity.supply import HostSupply
from agent.inventory.port import Chain, UnknownGpuError
from agent.inventory.preparation.records import owners
from agent.model.gpu import CcMode, CcModes, GpuUpkeep, GpuUse
from agent.model.ids import Bdf, EnclaveId
from agent.model.preparation import GpuCondition, is_clean
from agent.store.port import Reader


class Preparation(Protocol):
    """Prepares devices. What it does is durable in the store's GPU conditions."""

    async def start(self) -> None:
        """Find what a crash left half done. Before anything is reconciled."""
        ...

    async def keep(self) -> None:
        """Clean whatever is dirty and nobody's, for ever. Raises StoreError: call it again."""
        ...

    def look_again(self) -> None:
        """An enclave is gone: what it had may be dirty."""
        ...

    async def examine(self, devices: Sequence[Bdf]) -> None:
        """See that these could be made ready, without touching them. Raises AgentError."""
        ...

    async def make_ready(
        self, enclave: EnclaveId, devices: Sequence[Bdf], mode: CcMode | None
    ) -> None:
        """Have these clean, in that mode and with vfio; finds it done, or does it. AgentError."""
        ...

    async def recover(self, bdf: Bdf, tell: Chain) -> None:
        """Take a broken one off the bus and find it again, by hand. Raises AgentError."""
        ...

    async def set_aside(self, devices: Sequence[Bdf], reason: str) -> None:
        """Quarantine these: something that cannot be ended may still reach them."""
        ...


class NoPreparation:
    """On a host that hands out none."""

    async def start(self) -> None:
        """Nothing to find."""

    async def keep(self) -> None:
        """Nothing to clean."""
        await asyncio.Event().wait()

    def look_again(self) -> None:
        """Nothing to see."""

    async def examine(self, devices: Sequence[Bdf]) -> None:
        """As `make_ready`."""
        assert not devices

    async def make_ready(
        self, enclave: EnclaveId, devices: Sequence[Bdf], mode: CcMode | None
    ) -> None:
        """Nothing was ever admitted that has any."""
        del mode
        assert not devices, f"enclave {enclave} has GPUs, which nobody prepares here"

    async def recover(self, bdf: Bdf, tell: Chain) -> None:
        """There is none."""
        del tell
        raise UnknownGpuError(bdf)

    async def set_aside(self, devices: Sequence[Bdf], reason: str) -> None:
        """As `make_ready`."""
        del reason
        assert not devices


def recorded(tx: Reader, supply: HostSupply) -> HostSupply:
    """The supply, with what the store knows of its GPUs at this very moment.

    A look at the host is a moment old: an enclave may have left its GPUs since. What an enclave
    has is not dirty for as long as it has it: whoever takes it over requalifies it first.
    """
    rows = tx.gpu_conditions()
    if not rows:
        return supply
    held = {gpu for row in tx.enclaves() for gpu in (*row.gpus, *row.switches)}
    unclean = {row.bdf for row in rows if not is_clean(row)} - held
    modes = {row.bdf: row.mode for row in rows if row.mode is not None}
    lacking = {row.bdf: frozenset(one.mode for one in row.limits) for row in rows if row.limits}
    boards = as_recorded(supply.boards, unclean, modes, lacking)
    return msgspec.structs.replace(supply, boards=boards)


def gpu_uses(tx: Reader) -> dict[Bdf, GpuUse]:
    """What the inventory is told of each device that somebody had or has."""
    rows = {row.bdf: row for row in tx.gpu_conditions()}
    enclaves = {row.id for row in tx.enclaves()}
    owned = {Bdf(bdf): holder for bdf, holder in owners(tx).items() if holder in enclaves}
    found = {}
    for bdf in sorted({*rows, *owned}):
        row = rows.get(bdf)
        mode = row.mode if row else None
        found[bdf] = GpuUse(
            owner=owned.get(bdf),
            preparing=row is not None and row.busy,
            clean=is_clean(row),
            cc_mode=CcModes(active=mode, pending=mode) if mode else None,
            upkeep=_upkeep(row) if row else GpuUpkeep(),
        )
    return found


def _upkeep(row: GpuCondition) -> GpuUpkeep:
    return GpuUpkeep(
        fault=row.fault,
        mend=row.mend,
        mode_told=row.mode_told,
        limits=row.limits,
        resets=row.resets,
    )
