"""An inventory that a test puts there: no bus, no driver, no store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterator

import msgspec

from agent.host.wake import Wake
from agent.inventory.port import Chain, UnknownGpuError, unsigned
from agent.model.gpu import Gpu, GpuState, Quarantine
from agent.model.ids import Bdf
from agent.model.inventory import Inventory
from simulator.rows import instant


class FakeGpus:
    """Satisfies `agent.inventory.port.Gpus`. Set `inventory`; orders are in `calls`."""

    def __init__(self) -> None:
        self.changed = Wake()
        self.inventory: Inventory | None = None
        self.calls: list[tuple[str, str, str]] = []
        self.raises: Exception | None = None

    async def start(self) -> None:
        return

    async def refresh(self) -> None:
        return

    def look_soon(self) -> None:
        return

    @contextlib.asynccontextmanager
    async def released(self) -> AsyncIterator[None]:
        yield

    @contextlib.contextmanager
    def expecting(self, bdfs: Collection[Bdf]) -> Iterator[None]:
        yield

    def was_reset(self, bdf: Bdf) -> None:
        return

    async def quarantine(self, bdf: Bdf, reason: str, actor: str) -> Gpu:
        put = Quarantine(reason=reason, since=instant(), actor=actor)
        return self._put(bdf, state=GpuState.QUARANTINED, quarantine=put)

    async def release(self, bdf: Bdf, actor: str, chain: Chain = unsigned) -> Gpu:
        if self.raises is not None:
            raise self.raises
        self.calls.append(("release", bdf, actor))
        return self._put(bdf, state=GpuState.FREE, quarantine=None)

    async def close(self) -> None:
        return

    def _put(self, bdf: Bdf, **changes: object) -> Gpu:
        gpu = self.inventory.gpu(bdf) if self.inventory else None
        if gpu is None or self.inventory is None:
            raise UnknownGpuError(bdf)
        put = msgspec.structs.replace(gpu, **changes)
        gpus = tuple(put if one.bdf == bdf else one for one in self.inventory.gpus)
        self.inventory = msgspec.structs.replace(self.inventory, gpus=gpus)
        self.changed.notify()
        return put
