"""The work on one device, step by step: held by nobody, with vfio, reset, sound.

Each step finds its work done, or does it; so a preparation that was interrupted anywhere is
finished by doing all of it again. What is recorded, and when, is the preparer's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

from agent.host.attributes import AttributeStuckError, AttributeWriteError, write_attribute
from agent.host.commands import RunCommand, run_command
from agent.inventory.preparation.binding import Binder
from agent.inventory.preparation.errors import (
    BindingError,
    GpuHeldError,
    Holder,
    UnqualifiedError,
)
from agent.inventory.preparation.functions import Function, Vitals, look, vitals
from agent.inventory.preparation.holders import find_holders
from agent.inventory.preparation.ports import BusReset, bus_reset_of
from agent.model.ids import Bdf

_LOOK_EVERY_S = 0.2

Spend = Callable[[Bdf], Awaitable[None]]  # told before each reset; raises if it must not be


async def _unlimited(_: Bdf) -> None:
    """Of resets that nobody counts."""


async def _never(_: Bdf) -> bool:
    """Whether the bus above a device may be reset."""
    return False


class DeviceOps:
    """`budget_s`: from a device's reset until it must be sound again.

    `released_within_s`: how long a process that has ended may still show as a holder.
    `gives_display`: whether a GPU may be taken though it drives a display of the host's.
    """

    def __init__(
        self,
        sysfs_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        *,
        write_deadline_s: float = 20.0,
        budget_s: float = 90.0,
        released_within_s: float = 5.0,
        look_every_s: float = _LOOK_EVERY_S,
        run: RunCommand = run_command,
        gives_display: Callable[[Bdf], bool] = lambda _: False,
    ) -> None:
        self._root = sysfs_root
        self._proc = proc_root
        self._budget_s = budget_s
        self._look_every_s = look_every_s
        self._released_within_s = released_within_s
        self._run = run
        self._gives_display = gives_display
        self._binder = Binder(sysfs_root, deadline_s=write_deadline_s, run=run)

    async def is_with_vfio(self, bdf: Bdf) -> bool:
        """Whether its whole group is."""
        return await asyncio.to_thread(self._is_with_vfio, bdf)

    def _is_with_vfio(self, bdf: Bdf) -> bool:
        found = look(self._root, bdf)
        mates = [look(self._root, mate) for mate in found.mates] if found else []
        return bool(mates) and all(mate is not None and mate.is_ours for mate in mates)

    async def mates(self, bdf: Bdf) -> tuple[Bdf, ...]:
        """The functions that go with it, itself included; also of one that is not there."""
        found = await asyncio.to_thread(look, self._root, bdf)
        return found.mates if found else (bdf,)

    async def prove_unheld(
        self, bdfs: Collection[Bdf], may_hold: Callable[[Holder], bool] = lambda _: False
    ) -> tuple[Holder, ...]:
        """That nobody uses them, or a mate of theirs. Raises GpuHeldError.

        Returns those who `may_hold` it. A QEMU that has just ended lets its descriptors go a
        moment later: that long it waits.
        """
        functions = [await self._find(bdf) for bdf in bdfs]
        mates = {mate for one in functions for mate in one.mates}
        several = [await self._find(bdf) for bdf in sorted(mates)]
        until = asyncio.get_running_loop().time() + self._released_within_s
        while True:
            holders = await asyncio.to_thread(
                find_holders, several, self._proc, gives_display=self._gives_display
            )
            hindering = [one for one in holders if not may_hold(one)]
            if not hindering:
                return holders
            if asyncio.get_running_loop().time() >= until:
                raise GpuHeldError(functions[0].bdf, hindering)
            await asyncio.sleep(self._look_every_s)

    async def prove_usable(self, bdf: Bdf) -> None:
        """That it is there, answers, and has an IOMMU group. Safe while a guest has it."""
        one = await self._find(bdf)
        if one.group.fault is not None:
            raise BindingError(bdf, f"{one.group.fault}; {one.group.mend}")
        seen = await asyncio.to_thread(vitals, one)
        if not seen.responds:
            raise UnqualifiedError(bdf, seen.fault or "it does not answer")

    async def give_to_vfio(self, bdf: Bdf) -> None:
        """With its whole group. Raises BindingError."""
        await self._binder.to_vfio(await self._find(bdf))

    async def give_to_host(self, bdf: Bdf) -> None:
        """With its whole group. Raises BindingError."""
        await self._binder.to_host(await self._find(bdf))

    async def take_from_driver(self, bdf: Bdf) -> None:
        """This function alone. Raises BindingError."""
        await self._binder.without_driver(bdf)

    async def restore(
        self,
        devices: Sequence[Bdf],
        dirty: Collection[Bdf],
        was_reset: Callable[[Bdf], None],
        spend: Spend = _unlimited,
        may_reset_bus: Callable[[Bdf], Awaitable[bool]] = _never,
    ) -> list[BaseException]:
        """Have them with vfio and sound; the dirty ones, and what the host had, are reset.

        Groups side by side, the devices of a group one after another; each to its end, so that
        what fails with one cuts no other off. Returns what failed.
        """
        of = {bdf: await self.mates(bdf) for bdf in devices}
        groups = [[b for b in devices if of[b] == mates] for mates in dict.fromkeys(of.values())]

        async def work(group: Sequence[Bdf]) -> None:
            for bdf in group:
                was_ours = await self.is_with_vfio(bdf)
                await self.give_to_vfio(bdf)
                if was_ours and bdf not in dirty:
                    await self.prove_sound(bdf)
                else:  # the memory of what the host had is nobody's business
                    await self.reset(bdf, spend, may_reset_bus)
                    was_reset(bdf)

        ended = await asyncio.gather(*map(work, groups), return_exceptions=True)
        return [error for error in ended if error is not None]

    async def reset(
        self,
        bdf: Bdf,
        spend: Spend = _unlimited,
        may_reset_bus: Callable[[Bdf], Awaitable[bool]] = _never,
    ) -> None:
        """By the method that the kernel prefers, then wait until it is sound. UnqualifiedError.

        If it does not come back, once more by the bus of its port, where that concerns nothing
        but itself.
        """
        one = await self._find(bdf)
        try:
            await self._reset_function(one, spend)
        except UnqualifiedError as error:
            way = await asyncio.to_thread(bus_reset_of, self._root, one)
            stuck = isinstance(error.__cause__, AttributeStuckError)
            if way is None or stuck or not await may_reset_bus(bdf):
                raise
            await spend(bdf)
            await self._reset_bus(one, way)
            await self.prove_sound(bdf)

    async def _reset_function(self, one: Function, spend: Spend) -> None:
        path = one.path / "reset"
        if not path.exists():
            raise UnqualifiedError(one.bdf, "the kernel knows no way to reset it")
        await spend(one.bdf)
        await self._write_reset(one, path, "1")
        await self.prove_sound(one.bdf)

    async def _reset_bus(self, one: Function, way: BusReset) -> None:
        """Through the port, or through the device while the bus is its first method."""
        if way.methods is None:
            await self._write_reset(one, way.path, "1")
            return
        methods, others = one.path / "reset_method", way.methods.replace("bus", "").split()
        await self._write_reset(one, methods, " ".join(["bus", *others]))
        try:
            await self._write_reset(one, way.path, "1")
        finally:
            await self._write_reset(one, methods, way.methods)

    async def _write_reset(self, one: Function, path: Path, text: str) -> None:
        try:
            await write_attribute(path, f"{text}\n", deadline_s=self._budget_s, run=self._run)
        except AttributeWriteError as error:
            raise UnqualifiedError(one.bdf, "it cannot be reset") from error

    async def prove_sound(self, bdf: Bdf) -> None:
        """It answers and its link has all its lanes, within the budget. Raises UnqualifiedError.

        The speed of the link is not asked for: an idle GPU lowers it, and no reset trains it anew.
        """
        one = await self._find(bdf)
        seen: Vitals | None = None
        try:
            async with asyncio.timeout(self._budget_s):
                while True:
                    seen = await asyncio.to_thread(vitals, one)
                    if seen.fault is None:
                        return
                    await asyncio.sleep(self._look_every_s)
        except TimeoutError as error:
            why = seen.fault if seen else "it cannot be read"
            detail = f"{why}, {self._budget_s:g} s after its reset"
            raise UnqualifiedError(bdf, detail) from error

    async def _find(self, bdf: Bdf) -> Function:
        found = await asyncio.to_thread(look, self._root, bdf)
        if found is None:
            raise BindingError(bdf, "is not on the bus")
        return found
