"""All probers of this host: one task an enclave, each publishing its newest view.

Invariants: a watched enclave is always being probed (a task that breaks is logged and begun
again); a view is replaced whole and belongs to one launch.
"""

from __future__ import annotations

import asyncio
import logging

from agent.config import ProbesConfig
from agent.host.clock import Clock
from agent.host.contact import client_context
from agent.host.guest_sockets import UNMARKED, GuestSockets
from agent.host.wake import KeyedWake
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId
from agent.probes.booted import serves_booted
from agent.probes.port import HealthView, ProbeTarget
from agent.probes.watch import Surroundings, Watch

_ROUNDS_AT_ONCE = 16
_RESTART_AFTER_S = 1.0
_log = logging.getLogger(__name__)


class Prober:
    """Implements the port `Probes`. Needs a running event loop."""

    def __init__(
        self, config: ProbesConfig, clock: Clock, sockets: GuestSockets = UNMARKED
    ) -> None:
        self.changed = KeyedWake[EnclaveId]()
        self._watches: dict[EnclaveId, Watch] = {}
        self._tasks: dict[EnclaveId, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._surroundings = Surroundings(
            config=config,
            clock=clock,
            context=client_context(),
            sockets=sockets,
            changed=self.changed.tell,
            slots=asyncio.Semaphore(_ROUNDS_AT_ONCE),
        )

    def watch(self, target: ProbeTarget) -> None:
        """Begin, or go on with, probing. A target with another launch uuid starts afresh."""
        known = self._watches.get(target.enclave)
        if known is not None and known.launch_uuid == target.launch_uuid:
            known.retarget(target)
            return
        self.unwatch(target.enclave)
        watch = Watch(target, self._surroundings)
        self._watches[target.enclave] = watch
        self._tasks[target.enclave] = asyncio.create_task(
            _keep_running(watch), name=f"probe-{target.enclave}"
        )
        self.changed.tell(target.enclave)

    def unwatch(self, enclave_id: EnclaveId) -> None:
        """Stop probing and forget what was seen. Idempotent."""
        task = self._tasks.pop(enclave_id, None)
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        if self._watches.pop(enclave_id, None) is not None:
            self.changed.tell(enclave_id)

    def view(self, enclave_id: EnclaveId) -> HealthView | None:
        """The newest view; None if it is not watched."""
        watch = self._watches.get(enclave_id)
        return watch.view if watch else None

    def begin_anew(self) -> None:
        """See `Probes.begin_anew`."""
        for watch in self._watches.values():
            watch.begin_anew()

    async def serves_booted(self, endpoint: Endpoint) -> bool:
        """Whether the guest there says now that its boot is complete."""
        around = self._surroundings
        timeout_s = around.config.timeout_s
        return await serves_booted(endpoint, around.context, timeout_s, around.sockets)

    async def close(self) -> None:
        """Stop all, and wait until every connection is closed."""
        for enclave_id in list(self._tasks):
            self.unwatch(enclave_id)
        await asyncio.gather(*self._ending, return_exceptions=True)


async def _keep_running(watch: Watch) -> None:
    """A bug in probing must not leave an enclave unwatched: tell it, wait, begin again."""
    while True:
        try:
            await watch.run()
        except Exception:  # noqa: BLE001 - the supervisor of the task
            _log.exception("prober broke", extra={"enclave": watch.enclave})
        await asyncio.sleep(_RESTART_AFTER_S)
