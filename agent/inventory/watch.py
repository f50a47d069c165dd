"""Looks at the host now and then, and publishes what it has: one writer, any number of readers.

    bus, platform (a thread) ─┐
    NVML (its own process) ───┼─► identity ─► health ─► merge ─► published, events, rows
    claims, memory (store) ───┘

A look that fails changes nothing that was published but `complete`. What is learned is durable
before it is relied on after a reboot; what changes by the minute is never written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import msgspec

from agent.errors import AgentError, describe
from agent.host.clock import Clock
from agent.host.kernel_log import KernelLog
from agent.host.threads import finish_in_thread
from agent.host.wake import Wake
from agent.inventory.findings import told
from agent.inventory.guests import GuestMetrics, with_guests
from agent.inventory.identity import recall
from agent.inventory.kernel_messages import overheard
from agent.inventory.merge import merge
from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.nvml.values import NvmlEvent, NvmlLook
from agent.inventory.pci import PciReader
from agent.inventory.platform import PlatformProbe
from agent.inventory.port import Chain, GpuConditionError, UnknownGpuError, unsigned
from agent.inventory.problems import problems_of, unkept, unseen
from agent.inventory.quarantine import forget, lift_quarantine, set_quarantine
from agent.inventory.records import HealthRecords
from agent.inventory.selection import facts_of, selection_problems
from agent.inventory.settle import HostLook, beyond_repair, settle, turns
from agent.model.event import EventDraft
from agent.model.gpu import UNUSED, Gpu, GpuState, GpuUse, Quarantine
from agent.model.gpu_selection import EVERY_GPU, GpuSelection, left_alone
from agent.model.ids import Bdf
from agent.model.inventory import HostInventory, Inventory, InventoryProblem
from agent.model.pci import PciFunction, PciKind
from agent.model.pci_drivers import NVIDIA
from agent.store.port import Reader, Store, StoreDamagedError, StoreError, Transaction

log = logging.getLogger(__name__)

_AT_MOST_EVERY_S = 1.0  # a storm of XIDs is one look
_HEARD_WITHIN_S = 5.0  # what the kernel said, its log has been read

Uses = Callable[[Reader], Mapping[Bdf, GpuUse]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one look at the machine gave. `at_work`: what was being prepared at that moment."""

    functions: Mapping[Bdf, PciFunction]
    at_work: Collection[Bdf]
    host: HostInventory
    nvml: NvmlLook
    complete: bool  # NVML was asked, or has nothing to see


class InventoryWatch:
    """Implements `agent.inventory.port.Gpus`."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        pci: PciReader,
        platform: PlatformProbe,
        nvml: Callable[[Callable[[NvmlEvent], None]], NvmlProbe],
        interval_s: float,
        guest_metrics: GuestMetrics,
        uses: Uses,
        kernel: Callable[[Callable[[bytes], None]], KernelLog],
        selection: GpuSelection = EVERY_GPU,
    ) -> None:
        """`nvml` makes the probe, `kernel` the reader of its log, given where to tell."""
        self._selection = selection
        self._odd_names: tuple[InventoryProblem, ...] = ()
        self._store = store
        self._clock = clock
        self._pci = pci
        self._platform = platform
        self._nvml = nvml(self._hear)
        self._kernel = kernel(self._overhear)
        self._interval_s = interval_s
        self._guest_metrics = guest_metrics
        self._uses = uses
        self._looking, self._concluding = asyncio.Lock(), asyncio.Lock()
        self._seen: _Seen | None = None
        self._blind: tuple[InventoryProblem, ...] = ()  # why the newest look saw nothing
        self._records = HealthRecords()
        self._told: dict[Bdf, GpuState] = {}
        self._expected = Counter[Bdf]()  # of whom the kernel will speak, for what we do
        self._wanted = Wake()
        self._task: asyncio.Task[None] | None = None
        self.changed = Wake()
        self._inventory: Inventory | None = None

    @property
    def inventory(self) -> Inventory | None:
        """The newest."""
        return self._inventory

    async def start(self) -> None:
        """Know the bus, then go on looking. NVML may take long, and nothing waits for it."""
        await self._look(with_nvml=False)
        await self._kernel.start()
        self._task = asyncio.create_task(self._keep_looking(), name="inventory")

    async def refresh(self) -> None:
        """Look now, at everything."""
        await self._look(with_nvml=True)

    def look_soon(self) -> None:
        """Within a second."""
        self._wanted.notify()

    def released(self) -> AbstractAsyncContextManager[None]:
        """Inside, no handle of ours holds any GPU."""
        return self._nvml.released()

    async def close(self) -> None:
        """Stop looking. What was published stays."""
        self._kernel.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._nvml.close()

    async def _keep_looking(self) -> None:
        while True:
            seen = self._wanted.count
            try:
                await self.refresh()
            except StoreError as error:
                self._publish_blind(_untold(error))
            except AgentError as error:
                self._publish_blind((unseen(error.code, describe(error)),))
            except Exception:  # the owner of the task: told, and looked again
                log.exception("look at the inventory failed")
                why = "the look at the inventory failed; see the log"
                self._publish_blind((unseen("internal", why),))
            await asyncio.sleep(min(_AT_MOST_EVERY_S, self._interval_s))
            await self._wanted.beyond(seen, max(0.0, self._interval_s - _AT_MOST_EVERY_S))

    def _hear(self, event: NvmlEvent) -> None:
        log.warning("gpu event", extra={"gpu": event.bdf, "what": event.kind, "data": event.data})
        if self._records.note(event.bdf, told(event), self._clock.now()):
            self._wanted.notify()

    def _overhear(self, record: bytes) -> None:
        """A record of the kernel's log, of whatever it may be."""
        functions = self._seen.functions.values() if self._seen else ()
        for bdf, finding in overheard(record, functions):
            if self._expected[bdf] > 0:
                log.info("kernel message, expected", extra={"gpu": bdf, "what": finding.detail})
                continue
            log.warning("kernel message", extra={"gpu": bdf, "what": finding.detail})
            if self._records.note(bdf, finding, self._clock.now()):
                self._wanted.notify()

    async def _look(self, *, with_nvml: bool) -> None:
        async with self._looking:
            before = await self._at_work()
            try:
                functions, host = await finish_in_thread(self._read)
            except AgentError as error:
                self._publish_blind((unseen(error.code, describe(error)),))
                return
            at_work = before | await self._at_work()
            driven, nvml = _driven(functions), NvmlLook()
            if with_nvml:
                nvml = await self._nvml.look(driven)
            complete = with_nvml or not driven
            self._seen = _Seen(functions, at_work, host, nvml, complete)
            self._blind = ()
            await self._conclude(fresh=True)

    async def _at_work(self) -> set[Bdf]:
        uses = await self._store.read(self._uses)
        return {bdf for bdf, use in uses.items() if use.preparing}

    def _read(self) -> tuple[dict[Bdf, PciFunction], HostInventory]:
        return {one.bdf: one for one in self._pci.read()}, self._platform.read()

    async def _conclude(self, *, fresh: bool) -> None:
        """From what was seen to what is published. Not `fresh`: what was seen is no new look."""
        async with self._concluding:
            seen, now = self._seen, self._clock.now()
            if seen is None:
                return
            known, uses = await self._store.read(lambda tx: (tx.known_gpus(), self._uses(tx)))
            if fresh:
                says = {one.bdf: one for one in seen.nvml.gpus}
                found = recall(seen.functions.values(), says, known, now)
                then = {bdf: _preparing(uses.get(bdf, UNUSED)) for bdf in seen.at_work}
                self._records.look(seen.functions, seen.nvml, found, {**uses, **then}, now)
            look = HostLook(seen.functions, seen.nvml, self._records.health(), now)
            found, arrived = settle(known, look)
            facts = facts_of(seen.functions.values(), found.present)
            left = left_alone(self._selection, facts)
            self._odd_names = selection_problems(self._selection, facts)
            gpus = merge(seen.functions, seen.nvml, found, uses, look.health, left=left)
            events = [*arrived, *turns(self._told, gpus)]
            written = True
            unwritten: tuple[InventoryProblem, ...] = ()
            if found.changed or found.outdated or events:
                try:
                    await self._store.transact(lambda tx: _keep(tx, look, turns(self._told, gpus)))
                except StoreError as error:
                    written, unwritten = False, _untold(error)
                else:
                    self._log(events)
            if written:
                self._told = {gpu.bdf: gpu.state for gpu in gpus}
            self._publish(seen, with_guests(gpus, self._guest_metrics), unwritten)

    def _log(self, events: list[EventDraft]) -> None:
        for event in events:
            pairs = {"gpu": event.gpu, "from": event.from_, "to": event.to, "why": event.reason}
            log.info("gpu changed", extra=pairs)

    def _publish(
        self, seen: _Seen, gpus: tuple[Gpu, ...], problems: tuple[InventoryProblem, ...]
    ) -> None:
        self._inventory = Inventory(
            gpus=tuple(gpu for gpu in gpus if not gpu.is_switch),
            switches=tuple(gpu for gpu in gpus if gpu.is_switch),
            host=seen.host,
            nvml_driver=seen.nvml.driver_version,
            problems=(
                *problems_of(gpus, seen.nvml.trouble),
                *self._odd_names,
                *problems,
                *self._blind,
            ),
            observed_at=self._clock.now(),
            complete=seen.complete and not self._blind,
        )
        self.changed.notify()

    def _publish_blind(self, problems: tuple[InventoryProblem, ...]) -> None:
        """What was seen last stays to be read, and is not complete any more."""
        known = {problem.key for problem in problems}
        self._blind = problems
        last = self._inventory or Inventory(observed_at=self._clock.now(), complete=False)
        others = (one for one in last.problems if one.key not in known)
        self._inventory = msgspec.structs.replace(
            last, complete=False, problems=(*others, *problems)
        )
        self.changed.notify()

    @contextlib.contextmanager
    def expecting(self, bdfs: Collection[Bdf]) -> Iterator[None]:
        """Inside, and a moment after, what the kernel says of these is no news."""
        self._expected.update(bdfs)
        try:
            yield
        finally:
            loop = asyncio.get_running_loop()
            loop.call_later(_HEARD_WITHIN_S, self._expected.subtract, tuple(bdfs))

    def was_reset(self, bdf: Bdf) -> None:
        """What a reset mends is mended; nobody is to reset it again for what it was before."""
        self._records.was_reset(bdf)
        health = self._records.health().get(bdf)
        if self._inventory is not None and health is not None:
            self._inventory = self._inventory.with_health(bdf, health)
        self._wanted.notify()

    async def quarantine(self, bdf: Bdf, reason: str, actor: str) -> Gpu:
        """Keep it out of use until it is released."""
        kept = Quarantine(reason=reason, since=self._clock.now(), actor=actor)
        await self._store.transact(lambda tx: set_quarantine(tx, bdf, kept))
        await self._conclude(fresh=False)
        return self._gpu(bdf)

    async def release(self, bdf: Bdf, actor: str, chain: Chain = unsigned) -> Gpu:
        """Lift its quarantine, or forget it if it is absent."""
        gpu = self._gpu(bdf)
        if gpu.state is GpuState.ABSENT:
            await self._store.transact(lambda tx: forget(tx, bdf, actor, chain))
            await self._conclude(fresh=False)
            return msgspec.structs.replace(gpu, quarantine=None)
        if beyond_repair(gpu.health):
            reasons = "; ".join(reason.detail for reason in gpu.health.reasons)
            raise GpuConditionError("gpu_beyond_repair", f"GPU {bdf} must be returned: {reasons}")
        await self._store.transact(lambda tx: lift_quarantine(tx, bdf, actor, chain))
        await self._conclude(fresh=False)
        return self._gpu(bdf)

    def _gpu(self, bdf: Bdf) -> Gpu:
        gpu = self._inventory.gpu(bdf) if self._inventory else None
        if gpu is None:
            raise UnknownGpuError(bdf)
        return gpu


def _untold(error: StoreError) -> tuple[InventoryProblem, ...]:
    """What is to be told of a store that cannot be used. Of a damaged one its keeper tells."""
    damaged = isinstance(error, StoreDamagedError)
    return () if damaged else (unkept(error.code, describe(error)),)


def _preparing(use: GpuUse) -> GpuUse:
    return msgspec.structs.replace(use, preparing=True)


def _driven(functions: Mapping[Bdf, PciFunction]) -> frozenset[Bdf]:
    """The GPUs that NVML can see."""
    return frozenset(
        bdf for bdf, one in functions.items() if one.driver == NVIDIA and one.kind is PciKind.GPU
    )


def _keep(tx: Transaction, look: HostLook, turned: list[EventDraft]) -> None:
    """On the rows as they are now: a quarantine may have come since they were read."""
    found, arrived = settle(tx.known_gpus(), look)
    for key in found.outdated:
        tx.delete_known_gpu(key)
    for row in found.changed:
        tx.put_known_gpu(row)
    for event in (*arrived, *turned):
        tx.append(event)
