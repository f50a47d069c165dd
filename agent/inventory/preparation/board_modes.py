"""The mode of devices that are being prepared, set for a whole board at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.errors import AgentError
from agent.inventory.preparation.condition_book import ConditionBook
from agent.inventory.preparation.device_ops import DeviceOps
from agent.inventory.preparation.modes import DeviceModes, ModeTool, ToolReport
from agent.inventory.preparation.records import DevicePlace, mode_kinds
from agent.inventory.preparation.turns import Turns
from agent.model.gpu import CcMode
from agent.model.ids import Bdf


class BoardModes:
    """`tool` None: modes are of no concern here."""

    def __init__(
        self,
        tool: ModeTool | None,
        *,
        book: ConditionBook,
        device_ops: DeviceOps,
        turns: Turns,
        place_of: Callable[[Bdf], DevicePlace | None],
    ) -> None:
        self._modes = (
            None if tool is None else DeviceModes(tool, lambda bdf: mode_kinds(place_of(bdf)))
        )
        self._book = book
        self._device_ops = device_ops
        self._turns = turns
        self._place_of = place_of

    def prove_there(self, bdf: Bdf) -> None:
        """That modes can be set, where they matter. Raises ToolMissingError."""
        if self._modes is not None:
            self._modes.prove_there(bdf)

    def is_in(self, bdf: Bdf, found: CcMode | None, mode: CcMode | None) -> bool:
        """Whether a device whose mode is `found` is in the board's `mode` already."""
        return self._modes is None or mode is None or found is self._modes.own(bdf, mode)

    def to_switch(self, devices: Sequence[Bdf], mode: CcMode | None) -> tuple[Bdf, ...]:
        """Whatever is brought to another mode together with these."""
        if self._modes is None or mode is None:
            return ()
        boards = [place.board for bdf in devices if (place := self._place_of(bdf))]
        return tuple(sorted({bdf for board in boards for bdf in board} | set(devices)))

    async def settle(
        self,
        devices: Sequence[Bdf],
        mode: CcMode | None,
        board: Sequence[Bdf],
    ) -> dict[Bdf, ToolReport | None]:
        """The mode of each, in force and pending; set for the whole board if one is another."""
        if self._modes is None:
            return dict.fromkeys(devices)
        found: dict[Bdf, ToolReport | None] = {}
        wrong = False
        for bdf in devices:
            found[bdf] = report = await self._modes.report(bdf)
            wrong |= mode is not None and report.settled is not self._modes.own(bdf, mode)
        if mode is None or not wrong:
            return found
        others = [bdf for bdf in board if bdf not in devices and not self._is_suspect(bdf)]
        # Before the locks: of two that each want the other's device, both are turned away here.
        await self._book.prove_owner(others, None)
        async with self._turns.at(others), self._turns.unheld([*devices, *others]):
            await self._switch(self._modes, devices, others, mode)
        return {bdf: await self._modes.proven(bdf, mode) for bdf in devices}

    async def _switch(
        self, modes: DeviceModes, devices: Sequence[Bdf], others: Sequence[Bdf], mode: CcMode
    ) -> None:
        """Every device of the board, one after another; the others are free again after it."""
        await self._book.begin(others, None)
        try:
            for bdf in others:
                await self._device_ops.give_to_vfio(bdf)
            # The enclave's own come last: if this is interrupted, their mode shows that the
            # board is not done, and all of it is done again.
            for bdf in (*others, *devices):
                await self._book.spend(bdf, modes.resets(bdf))
                await modes.bring_to(bdf, mode)
                await self._device_ops.prove_sound(bdf)
            found: dict[Bdf, ToolReport | None] = {
                bdf: await modes.proven(bdf, mode) for bdf in others
            }
        except AgentError as error:
            await self._book.fail(others, error)
            raise
        await self._book.finish(found)

    def _is_suspect(self, bdf: Bdf) -> bool:
        place = self._place_of(bdf)
        return place is not None and place.quarantined
