"""The preparer's hand on the rows of GPU conditions: a transaction a step, and what follows it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from agent.errors import AgentError
from agent.host.clock import Clock
from agent.inventory.preparation.modes import ToolReport
from agent.inventory.preparation.records import (
    begin,
    count_launch,
    count_reset,
    finish,
    give_up,
    keep_limits,
    ppcie_in_use,
    prove_owner,
    set_back,
)
from agent.model.ids import Bdf, EnclaveId
from agent.model.preparation import GpuCondition
from agent.store.port import Store, Transaction

log = logging.getLogger(__name__)

_FAILED_LAUNCHES = 3  # in a row, before a GPU is suspected


class ConditionBook:
    """`quarantine`: take a device out of use, with the reason. `kinds_of`: its kinds of mode."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        quarantine: Callable[[Bdf, str], Awaitable[None]],
        kinds_of: Callable[[Bdf], Sequence[str]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._quarantine = quarantine
        self._kinds_of = kinds_of

    async def rows(self, devices: Collection[Bdf]) -> dict[Bdf, GpuCondition]:
        """Of those of them that have one."""
        rows = await self._store.read(lambda tx: tx.gpu_conditions())
        return {row.bdf: row for row in rows if row.bdf in devices}

    async def prove_owner(self, devices: Collection[Bdf], owner: EnclaveId | None) -> None:
        """That these are that enclave's, or nobody's if None. Raises GpuOwnedError."""
        await self._store.read(lambda tx: prove_owner(tx, devices, owner))

    async def ppcie_in_use(self, board: Collection[Bdf], owner: EnclaveId | None) -> bool:
        """Whether somebody else has a device of the board in `ppcie`."""
        return await self._store.read(lambda tx: ppcie_in_use(tx, board, owner))

    async def begin(self, devices: Collection[Bdf], owner: EnclaveId | None) -> frozenset[Bdf]:
        """Record that work begins; returns those to be reset. Raises GpuOwnedError."""
        now = self._clock.now()
        return await self._store.transact(lambda tx: begin(tx, devices, owner, now))

    async def set_back(self, devices: Collection[Bdf]) -> None:
        """Nobody works on them any more, and they are dirty."""
        now = self._clock.now()
        await self._store.transact(lambda tx: set_back(tx, devices, now))

    async def spend(self, bdf: Bdf, times: int = 1) -> None:
        """Before a reset. Raises ResetsSpentError."""
        now = self._clock.now()
        await self._store.transact(lambda tx: count_reset(tx, bdf, now, times))

    async def finish(self, reports: Mapping[Bdf, ToolReport | None]) -> None:
        """Clean; in quarantine even so, if no mode that anybody wants is left to it."""
        now = self._clock.now()
        asked = {bdf: report for bdf, report in reports.items() if report is not None}
        modes = {bdf: report.settled for bdf, report in asked.items()}
        told = {bdf: report.told for bdf, report in asked.items()}

        def work(tx: Transaction) -> dict[Bdf, str]:
            finish(tx, list(reports), modes, now, told)
            return keep_limits(tx, asked, self._kinds_of)

        await self._condemn(await self._store.transact(work))

    async def fail(self, devices: Collection[Bdf], error: AgentError) -> None:
        """They are dirty; what cannot succeed with one of them goes into quarantine."""
        now = self._clock.now()
        await self._condemn(
            await self._store.transact(lambda tx: give_up(tx, devices, error, now, self._kinds_of))
        )

    async def condemn_suspects(self, devices: Collection[Bdf]) -> None:
        """Quarantine those that several launches in a row failed on; then they count anew."""
        failed = {bdf: row.failed_launches for bdf, row in (await self.rows(devices)).items()}
        suspects = [bdf for bdf, count in failed.items() if count >= _FAILED_LAUNCHES]
        for bdf in suspects:
            await self._quarantine(bdf, f"{failed[bdf]} launches in a row failed with it")
        if suspects:
            await self._store.transact(lambda tx: count_launch(tx, suspects, failed=False))

    async def _condemn(self, devices: Mapping[Bdf, str]) -> None:
        for bdf, why in devices.items():
            log.error("gpu given up", extra={"gpu": bdf, "why": why})
            await self._quarantine(bdf, why)
