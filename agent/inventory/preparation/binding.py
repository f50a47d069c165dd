"""Gives a whole IOMMU group to vfio-pci, and back to whoever the kernel would give it to.

Never `new_id`, which is for every device of a kind on the host: `driver_override` names one
function. Each step is skipped where its outcome is there already, so that an interrupted binding
is finished by doing it again. Nobody may hold the group: the caller has looked.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.host.attributes import AttributeStuckError, AttributeWriteError, write_attribute
from agent.host.commands import RunCommand, run_command
from agent.inventory.preparation.errors import BindingError, StuckError
from agent.inventory.preparation.functions import Function, look
from agent.model.ids import Bdf
from agent.model.pci_drivers import VFIO_PCI as VFIO

_SEEN_WITHIN_S = 1.0
_LOOK_EVERY_S = 0.02


class Binder:
    """Writes below `sysfs_root`. `deadline_s` is for each single write."""

    def __init__(
        self,
        sysfs_root: Path = Path("/sys"),
        *,
        deadline_s: float = 20.0,
        run: RunCommand = run_command,
    ) -> None:
        self._root = sysfs_root
        self._run = run
        self._deadline_s = deadline_s

    async def to_vfio(self, function: Function) -> None:
        """Have every function of its group with vfio. Raises BindingError."""
        if function.group.fault is not None:  # to take a group is to take it from the host whole
            detail = f"{function.group.fault}; {function.group.mend}"
            raise BindingError(function.bdf, detail)
        for bdf in function.mates:
            one = self._find(bdf)
            if one.is_ours:
                continue
            await self._override(one, None)
            await self._unbind(one)
            await self._override(one, VFIO)
            await self._write(one, f"bus/pci/drivers/{VFIO}/bind", bdf)
            await self._settled(bdf, bound=True)

    async def to_host(self, function: Function) -> None:
        """Give every function of its group back. Raises BindingError."""
        for bdf in function.mates:
            one = self._find(bdf)
            await self._override(one, None)
            if one.is_ours:
                await self._unbind(one)
                await self._write(one, "bus/pci/drivers_probe", bdf)

    async def without_driver(self, bdf: Bdf) -> None:
        """Take one function from whoever has it, for nobody. Raises BindingError."""
        one = self._find(bdf)
        await self._override(one, None)
        await self._unbind(one)

    def _find(self, bdf: Bdf) -> Function:
        found = look(self._root, bdf)
        if found is None:
            raise BindingError(bdf, "is not on the bus any more")
        return found

    async def _override(self, function: Function, driver: str | None) -> None:
        """An empty line clears it."""
        await self._write(function, function.path / "driver_override", driver or "")

    async def _unbind(self, function: Function) -> None:
        if function.driver is None:
            return
        await self._write(function, f"bus/pci/drivers/{function.driver}/unbind", function.bdf)
        await self._settled(function.bdf, bound=False)

    async def _write(self, function: Function, where: str | Path, text: str) -> None:
        try:
            await write_attribute(
                self._root / where, f"{text}\n", deadline_s=self._deadline_s, run=self._run
            )
        except AttributeStuckError as error:
            raise StuckError(function.bdf, "the kernel does not return") from error
        except AttributeWriteError as error:
            raise BindingError(function.bdf, "the kernel did not do it") from error

    async def _settled(self, bdf: Bdf, *, bound: bool) -> None:
        """What was written is believed when it shows."""
        for _ in range(int(_SEEN_WITHIN_S / _LOOK_EVERY_S)):
            one = self._find(bdf)
            if one.is_ours if bound else one.driver is None:
                return
            await asyncio.sleep(_LOOK_EVERY_S)
        what = f"{VFIO} did not take it" if bound else "its driver did not let it go"
        raise BindingError(bdf, f"{what}; the kernel's log says why")
