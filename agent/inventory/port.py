"""The inventory as others use it: the engine, the preparation of GPUs, the surfaces."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from agent.errors import AgentError
from agent.host.wake import Wake
from agent.model.event import EventDraft
from agent.model.gpu import Gpu
from agent.model.ids import Bdf
from agent.model.inventory import Inventory
from agent.store.port import Transaction

Chain = Callable[[Transaction, EventDraft], object]


def unsigned(tx: Transaction, draft: EventDraft) -> None:
    """Chain it as it is: nobody asked for it from outside."""
    tx.append(draft)


class UnknownGpuError(AgentError):
    """There is no GPU or switch of that BDF, and none is remembered."""

    def __init__(self, bdf: str) -> None:
        super().__init__(f"no GPU {bdf}; enclave-agent gpus lists them")

    @property
    def code(self) -> str:
        return "not_found"


class GpuConditionError(AgentError):
    """It is not in a state in which that may be done. The text says what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self._code = code

    @property
    def code(self) -> str:
        return self._code


class Gpus(Protocol):
    """The GPUs of this host. What is published is replaced whole."""

    changed: Wake  # rung whenever a new inventory is published

    @property
    def inventory(self) -> Inventory | None:
        """The newest; None before the first look."""
        ...

    async def start(self) -> None:
        """Look at the bus, publish, and go on looking. Does not wait for NVML."""
        ...

    async def refresh(self) -> None:
        """Look now, at everything: after a bind, a reset, a change of mode."""
        ...

    def look_soon(self) -> None:
        """Who owns what may have changed: look within a second, and return at once."""
        ...

    def released(self) -> AbstractAsyncContextManager[None]:
        """Inside, no handle of ours holds any GPU. Raises NvmlStuckError: then unbind nothing."""
        ...

    def expecting(self, bdfs: Collection[Bdf]) -> AbstractContextManager[None]:
        """Inside, and a moment after, what the kernel says of these is no news."""
        ...

    def was_reset(self, bdf: Bdf) -> None:
        """It was reset and requalified: what a reset mends is mended."""
        ...

    async def quarantine(self, bdf: Bdf, reason: str, actor: str) -> Gpu:
        """Keep it out of use, over reboots, until it is released. Raises UnknownGpuError."""
        ...

    async def release(self, bdf: Bdf, actor: str, chain: Chain = unsigned) -> Gpu:
        """Lift its quarantine, or forget it if it is absent. Nothing happens if it is neither.

        Durable when it returns, with the event that `chain` made of it. Raises UnknownGpuError,
        and GpuConditionError for one that would be quarantined again at once.
        """
        ...

    async def close(self) -> None: ...
