r"""The preparer: the only one to work on GPUs, and the owner of what is recorded of them.

    clean --(an enclave has run on it)--> dirty --> busy --> clean
      \--(bound, or brought to a mode)--> busy --/    \--(fails)--> dirty; a few times: `retries`

Invariants: nothing is touched before `busy` is durable, in a transaction that has seen that nobody
else owns the device (nor its board, where a mode is to change); it is `clean` only after
everything was proven; a crash in between leaves it dirty. Work on one device is serial, on several
concurrent. NVML is away and the holders were looked for before anything is unbound or reset.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Sequence,
)
from contextlib import AbstractAsyncContextManager

from agent.errors import AgentError, describe
from agent.host.clock import Clock
from agent.host.wake import Wake
from agent.inventory.port import Chain, UnknownGpuError
from agent.inventory.preparation.board_modes import BoardModes
from agent.inventory.preparation.condition_book import ConditionBook
from agent.inventory.preparation.device_ops import DeviceOps
from agent.inventory.preparation.errors import (
    GpuLeftAloneError,
    GpuOwnedError,
    GpuQuarantinedError,
    RecoveryError,
    ResetsSpentError,
    StuckError,
    UnqualifiedError,
)
from agent.inventory.preparation.known_devices import recover
from agent.inventory.preparation.modes import ModeTool
from agent.inventory.preparation.observers import Observers
from agent.inventory.preparation.records import DevicePlace, mode_kinds
from agent.inventory.preparation.recovery import Recovery
from agent.inventory.preparation.requalifier import Requalifier
from agent.inventory.preparation.retries import resets_spent
from agent.inventory.preparation.turns import Turns
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, EnclaveId
from agent.model.preparation import is_clean
from agent.store.port import Store


class Preparer:
    """Implements `agent.updates.admission.gpus.Preparation`.

    `present`: the GPUs and switches that are there. `place_of`: what is known of the board of one;
    None if it is not there. `quarantine`: take it out of use, with the reason. `released`: NVML is
    away inside. `was_reset`: what a reset mends is mended.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        device_ops: DeviceOps,
        tool: ModeTool | None,
        *,
        present: Callable[[], Collection[Bdf]],
        place_of: Callable[[Bdf], DevicePlace | None],
        quarantine: Callable[[Bdf, str], Awaitable[None]],
        released: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext,
        was_reset: Callable[[Bdf], None] = lambda _: None,
        observers: Observers | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        """`tool` None: modes are of no concern here (no confidential computing).

        `observers`: services that may be stopped meanwhile; None: none. `recovery`: takes broken
        ones off the bus and finds them again; None: nobody does.
        """
        self._store = store
        self._clock = clock
        self._device_ops = device_ops
        self._place_of = place_of
        self._quarantine = quarantine
        self._book = ConditionBook(
            store, clock, quarantine=quarantine, kinds_of=lambda bdf: mode_kinds(place_of(bdf))
        )
        self._observers = observers or Observers(store)
        self._turns = Turns(device_ops, self._observers)
        self._modes = BoardModes(
            tool,
            book=self._book,
            device_ops=device_ops,
            turns=self._turns,
            place_of=place_of,
        )
        self._released = released
        self._recovery = recovery
        self._was_reset = was_reset
        self.changed = Wake()
        self._requalifier = Requalifier(
            store,
            clock,
            self.changed,
            present=present,
            place_of=place_of,
            requalify=self.requalify,
            modes_matter=tool is not None,
        )

    async def start(self) -> None:
        """What was under way when the agent died is dirty; what it had stopped runs again."""
        if self._recovery is not None and (unlike := await self._recovery.resume()):
            with contextlib.suppress(UnknownGpuError):  # nobody can be given what nobody knows
                await self._quarantine(*unlike)
        now = self._clock.now()
        await self._store.transact(lambda tx: recover(tx, now))
        await self._observers.start_again()
        await self._requalifier.learn()

    async def keep(self) -> None:
        """Requalify whatever is dirty and nobody's, for ever; each device by itself."""
        await self._requalifier.keep()

    def look_again(self) -> None:
        """An enclave is gone: what it had is cleaned at once."""
        self.changed.notify()

    async def examine(self, devices: Sequence[Bdf]) -> None:
        """See that these could be made ready, without touching them: another may run on them."""
        rows, now = await self._book.rows(devices), self._clock.now()
        for bdf in devices:
            self._refuse_quarantined(bdf)
            if bdf in rows and (why := resets_spent(rows[bdf], now)):
                raise ResetsSpentError(bdf, why)
            await self._device_ops.prove_usable(bdf)
        # Of what vfio has, an enclave may be the user: that one is to be stopped first.
        hosts = [bdf for bdf in devices if not await self._device_ops.is_with_vfio(bdf)]
        if hosts:
            async with self._released():
                await self._device_ops.prove_unheld(hosts, self._observers.may_stop)

    async def make_ready(
        self, enclave: EnclaveId, devices: Sequence[Bdf], mode: CcMode | None
    ) -> None:
        """Have these, which the enclave owns, clean, in that mode and with vfio.

        Finds it done, or does it. Raises PreparationError, and then none of them is free to
        others: they are dirty, and the enclave's for as long as it holds them.
        """
        board = self._modes.to_switch(devices, mode)
        async with self._turns.at(devices):
            if await self._is_ready(devices, mode):
                return
            await self._refuse_suspects(devices)
            await self._work(devices, mode, owner=enclave, board=board)

    async def recover(self, bdf: Bdf, tell: Chain) -> None:
        """Take a broken device off the bus and find it again, whoever asks for it by hand.

        Whatever has it in quarantine stays. Raises PreparationError: it is in quarantine then, or
        was not touched. Goes on if the caller is cancelled.
        """
        work = asyncio.create_task(self._recover(bdf, tell), name=f"recover:{bdf}")
        await asyncio.shield(work)

    async def _recover(self, bdf: Bdf, tell: Chain) -> None:
        place = self._place_of(bdf)
        if self._recovery is None or place is None:
            raise RecoveryError(bdf, "is not on the bus any more", "reboot the host")
        if place.left_alone is not None:
            raise GpuLeftAloneError(bdf, f"is left alone: {place.left_alone}")
        async with self._turns.at([bdf]), self._released():
            plan = await self._recovery.plan(bdf)
            if await self._book.ppcie_in_use(place.board, None):
                raise GpuOwnedError(bdf, "an enclave runs on its board in ppcie; stop it first")
            await self._book.prove_owner([bdf], None)
            async with self._turns.unheld([bdf]):
                await self._book.begin([bdf], None)
                try:
                    for function in plan.functions:
                        await self._device_ops.take_from_driver(function)
                    if faults := await self._recovery.carry_out(plan, tell):
                        raise RecoveryError(bdf, "; ".join(faults))
                except AgentError as error:
                    await self._book.fail([bdf], error)
                    raise
                await self._book.set_back([bdf])
        self._was_reset(bdf)
        self.changed.notify()

    async def set_aside(self, devices: Sequence[Bdf], reason: str) -> None:
        """Quarantine these, once: something that cannot be ended may still reach them."""
        for bdf in devices:
            if not self._is_suspect(bdf):
                await self._quarantine(bdf, reason)

    async def requalify(self, bdf: Bdf) -> None:
        """Make a device that nobody owns free again. Raises PreparationError."""
        async with self._turns.at([bdf]):
            row = (await self._book.rows([bdf])).get(bdf)
            if row is not None and not is_clean(row):  # nobody did it while this waited
                await self._refuse_suspects([bdf])
                if why := resets_spent(row, self._clock.now()):
                    raise ResetsSpentError(bdf, why)
                await self._work([bdf], None, owner=None, board=())

    async def _refuse_suspects(self, devices: Sequence[Bdf]) -> None:
        """Those that several launches in a row failed on go into quarantine, and stay there."""
        await self._book.condemn_suspects(devices)
        for bdf in devices:
            self._refuse_quarantined(bdf)

    def _refuse_quarantined(self, bdf: Bdf) -> None:
        if self._is_suspect(bdf):
            raise GpuQuarantinedError(bdf, "is in quarantine; release it once it is mended")

    async def _is_ready(self, devices: Collection[Bdf], mode: CcMode | None) -> bool:
        rows = await self._book.rows(devices)
        done = all(bdf in rows and is_clean(rows[bdf]) for bdf in devices)
        right = all(
            bdf in rows and self._modes.is_in(bdf, rows[bdf].mode, mode) for bdf in devices
        )
        if not (done and right):
            return False
        if any(self._asks_for_reset(bdf) for bdf in devices):
            return False
        return all([await self._device_ops.is_with_vfio(bdf) for bdf in devices])

    async def _work(
        self,
        devices: Sequence[Bdf],
        mode: CcMode | None,
        *,
        owner: EnclaveId | None,
        board: Sequence[Bdf],
    ) -> None:
        self._modes.prove_there(devices[0])
        async with self._released():
            if owner is not None:
                await self._do(devices, mode, owner, board, self._turns.unheld(devices))
            else:  # what is only waited for is no news, and leaves no trace
                async with self._turns.unheld(devices):
                    await self._do(devices, mode, owner, board, contextlib.nullcontext())
        self.changed.notify()

    async def _do(
        self,
        devices: Sequence[Bdf],
        mode: CcMode | None,
        owner: EnclaveId | None,
        board: Sequence[Bdf],
        unheld: AbstractAsyncContextManager[None],
    ) -> None:
        dirty = await self._book.begin(devices, owner)
        dirty |= {bdf for bdf in devices if self._asks_for_reset(bdf)}
        try:
            async with unheld:
                await self._restore(devices, dirty, owner)
                reports = await self._modes.settle(devices, mode, board)
        except AgentError as error:
            await self._book.fail(devices, error)
            self.changed.notify()
            raise
        await self._book.finish(reports)

    async def _restore(
        self, devices: Sequence[Bdf], dirty: Collection[Bdf], owner: EnclaveId | None
    ) -> None:
        """All of them with vfio and sound, or the first error; each that is unsound is told."""

        async def may_reset_bus(bdf: Bdf) -> bool:
            place = self._place_of(bdf)
            board = place.board if place else (bdf,)
            return not await self._book.ppcie_in_use(board, owner)

        errors = await self._device_ops.restore(
            devices, dirty, self._was_reset, self._book.spend, may_reset_bus
        )
        for error in errors[1:]:  # of the first the caller takes care
            if isinstance(error, UnqualifiedError | StuckError):
                await self._quarantine(error.bdf, describe(error))
        if errors:
            raise errors[0]

    def _is_suspect(self, bdf: Bdf) -> bool:
        place = self._place_of(bdf)
        return place is not None and place.quarantined

    def _asks_for_reset(self, bdf: Bdf) -> bool:
        place = self._place_of(bdf)
        return place is not None and place.asks_for_reset
