"""Whether the host shuts down: then a VM that ends by itself is mourned by nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from agent.enclaves.port import VmPhase, VmView
from agent.host.clock import Clock
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import EnclaveId

log = logging.getLogger(__name__)

AskHost = Callable[[], Awaitable[bool]]
_EVERY_S = 1.0
_ENDED = {
    Lifecycle.RUNNING: (VmPhase.ABSENT, VmPhase.EXITED),
    Lifecycle.LAUNCHING: (VmPhase.EXITED,),
}


async def stays_up() -> bool:
    """Of a host that nobody can ask: it does not shut down."""
    return False


class HostShutdown:
    """Asks only while a VM has ended by itself, and then not more often than every second.

    An agent that systemd stops before its VMs, as the shipped unit has it, never learns of a
    shutdown; one that was started in another way sees its VMs powered off.
    """

    def __init__(self, ask: AskHost, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._asking = asyncio.Lock()  # VMs end together: nobody decides before the answer
        self._asked_at: Instant | None = None
        self._stopping = False

    async def stopping(self, enclaves: Iterable[Enclave], vms: Mapping[EnclaveId, VmView]) -> bool:
        """To be known before anything is decided about what is seen here."""
        ended = any(
            row.id in vms and vms[row.id].phase in _ENDED.get(row.lifecycle, ())
            for row in enclaves
        )
        if not ended:
            return self._stopping
        async with self._asking:
            now = self._clock.now()
            ago_s = now.since(self._asked_at) if self._asked_at else None
            if ago_s is None or ago_s >= _EVERY_S:
                before, self._stopping = self._stopping, await self._ask()
                self._asked_at = now
                if self._stopping and not before:
                    log.warning("the host shuts down: nothing is moved or launched any more")
        return self._stopping
