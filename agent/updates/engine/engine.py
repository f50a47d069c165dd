"""The engine's life: adopts what runs, keeps a reconciler a deployment, watches and publishes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from agent.capacity.listen_rules import ListenRules
from agent.capacity.supply import HostSupply
from agent.enclaves.port import VmPhase
from agent.errors import AgentError, describe
from agent.host.liveness import Liveness
from agent.host.restart_on_error import restart_on_error
from agent.host.wake import Wake
from agent.model.enclave import Enclave
from agent.model.ids import DeploymentName, EnclaveId
from agent.releases.port import KeptImage
from agent.store.port import Reader, Transaction
from agent.updates.admission.leases import Leasing
from agent.updates.admission.reassign_gpus import reassign_gpus
from agent.updates.admission.restart_old import RestartOld
from agent.updates.engine.data_plane import DataPlaneWatch
from agent.updates.engine.dependencies import EngineDependencies
from agent.updates.engine.executor import Executor
from agent.updates.engine.forwarding import of_deployments, of_enclaves
from agent.updates.engine.host_shutdown import HostShutdown
from agent.updates.engine.last_words import WINDOW, last_words
from agent.updates.engine.launch_order import biggest_first
from agent.updates.engine.network_reports import NetworkReports
from agent.updates.engine.observer import Observer
from agent.updates.engine.outlook_upkeep import OutlookUpkeep
from agent.updates.engine.reconciler import Reconciler
from agent.updates.engine.restored_orphans import RestoredOrphans
from agent.updates.engine.resumption import Resumption
from agent.updates.engine.wakeups import Wakeups
from agent.updates.planner.alarms import alarms
from agent.updates.planner.health_alarms import health_alarms
from agent.updates.secrets.versions import Secrets
from agent.updates.snapshot.forecast import Forecaster, needed_digests
from agent.updates.snapshot.publisher import SnapshotPublisher
from agent.updates.snapshot.rows import Observation, Rows, situation
from agent.updates.snapshot.snapshot import HostFacts

log = logging.getLogger(__name__)

DRAINING = "draining"  # a key of the store's meta table

_RESTART_AFTER_S = 1.0
_IMAGES_EVERY_S = 3600.0
_TURN_S = 60.0  # a turn reads and writes the store and asks the data plane; it takes milliseconds


class EngineRuntime:
    """Everything that runs. `service.UpdateEngine` puts the requests on top of it."""

    def __init__(self, parts: EngineDependencies, host: HostFacts) -> None:
        self.parts = parts
        self.publisher = SnapshotPublisher(host, parts.clock, parts.secret_values)
        self.secrets = Secrets(parts.store, parts.secret_values, self.publisher.show_alarms)
        self.wakeups = Wakeups()
        self.liveness = Liveness()
        self._rows_changed = Wake()
        self._host_shutdown = HostShutdown(parts.host_stopping, parts.clock)
        self._latest_supply: HostSupply | None = None
        self._known: dict[DeploymentName, set[EnclaveId]] = {}  # those whose end is to be seen
        self._reconcilers: dict[DeploymentName, tuple[Reconciler, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._orphans = RestoredOrphans(
            store=parts.store,
            enclaves=parts.enclaves,
            probes=parts.probes,
            traffic=parts.traffic,
            publisher=self.publisher,
            clock=parts.clock,
            policy=parts.policy,
            wakeups=self.wakeups,
        )
        self.executor = Executor(
            store=parts.store,
            releases=parts.releases,
            enclaves=parts.enclaves,
            traffic=parts.traffic,
            attestation=parts.attestation,
            secrets=self.secrets,
            preparation=parts.preparation,
            host_id=parts.host_id,
            spki_of=self._spki_of,
            now=parts.clock.now,
            measured=parts.measured,
            preflight=parts.preflight,
            keeps_route=self._orphans.keeps,
            restart_old=RestartOld(
                store=parts.store,
                gpus=parts.gpus,
                missing=parts.secret_values.missing,
                supply=self.supply,
                now=parts.clock.now,
            ),
            serves_booted=parts.probes.serves_booted,
        )
        self.data_plane = DataPlaneWatch(
            parts.store, parts.traffic, self.executor, self.wakeups, self._orphans.holds
        )
        self._network_reports = NetworkReports(parts.network_news, parts.store, self.publisher)
        self._observer = Observer(parts, self.executor, self.data_plane)
        self._resumption = Resumption(
            parts.suspensions, parts.probes, self.executor.verdicts, self.wakeups
        )
        self.forecaster = Forecaster(
            parts.store,
            parts.releases,
            parts.secret_values,
            supply=self.supply,
            is_well=self.is_well,
            now=parts.clock.now,
        )
        self._outlook = OutlookUpkeep(
            self.forecaster,
            self.publisher,
            self.data_plane,
            rows_changed=self._rows_changed,
            listen_rules=self._listen_rules,
            protect_images=self.protect_images,
            promise=lambda within_s: self.liveness.promise("forecast", within_s),
        )
        self.leases = Leasing(
            parts.store,
            parts.clock,
            parts.releases,
            supply=self.supply,
            changed=self._rows_changed.notify,
            launchable=parts.launchable,
        )

    async def start(self) -> None:
        """Adopt and reconcile; returns when every deployment has been looked at once."""
        parts = self.parts
        rows, names = await parts.store.read(_everything)
        draining = await parts.store.read(lambda tx: tx.meta(DRAINING))
        self.publisher.show_host(draining=draining == "yes")
        await parts.gpus.start()
        self._show_inventory()
        # The filters of taps pass only what the data plane has marked: its marks come first.
        await parts.traffic.start()
        await parts.enclaves.start()
        rows = await self._take_over(rows)
        await self.data_plane.compare()
        parts.secret_values.forget_others(set(names))
        for name in names:
            await self.secrets.sweep(name)
        parts.enclaves.forget_others([row.id for row in rows])
        for row in rows:
            self._known.setdefault(row.deployment, set()).add(row.id)
        await self.protect_images()
        for changed in (parts.enclaves.changed, parts.probes.changed):
            self._tasks.append(
                asyncio.create_task(of_enclaves(changed, self._known, self.wakeups))
            )
        news = of_deployments(parts.outside.changed, self._known, self.wakeups)
        self._tasks.append(asyncio.create_task(news))
        self._tasks.append(asyncio.create_task(self._follow_inventory()))
        self._tasks.append(asyncio.create_task(self._keep(self._network_reports.follow)))
        for watch in (*parts.watches, self._resumption.watch):
            self._tasks.append(asyncio.create_task(restart_on_error("watch", watch)))
        await self._know_supply()  # other GPUs for a relaunch may be the first thing to do
        for name in names:
            self.own(name)
        for reconciler, _ in list(self._reconcilers.values()):
            await reconciler.settled.wait()
        self._tasks.append(asyncio.create_task(self._outlook.keep()))
        keeping = (self.leases.keep, parts.preparation.keep, self._keep_images, self.secrets.keep)
        self._tasks += [asyncio.create_task(self._keep(keep)) for keep in keeping]
        self._tasks.append(asyncio.create_task(self._orphans.settle(self._apply_anew)))
        self.publisher.show_ready(())

    async def _take_over(self, rows: list[Enclave]) -> list[Enclave]:
        """Adopt VMs and data plane; returns the rows as they are then."""
        parts = self.parts
        spare = await self._orphans.find(rows)
        rows = await parts.store.read(lambda tx: tx.enclaves())
        await parts.preparation.start()
        await parts.enclaves.adopt(rows, spare)
        wanted = await parts.store.read(self.data_plane.orders)
        self._orphans.hold(wanted, await parts.traffic.observe(), rows)
        return rows

    def _apply_anew(self, name: DeploymentName) -> None:
        self.executor.applied.pop(name, None)

    async def close(self) -> None:
        """Stop deciding. VMs and the data plane go on."""
        tasks = [*self._tasks, *(task for _, task in self._reconcilers.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def show_draining(self, draining: bool) -> None:
        """The host was told to admit nothing new, or to admit again."""
        self.publisher.show_host(draining=draining)
        self._rows_changed.notify()

    def is_well(self, row: Enclave) -> bool:
        """Whether the VM of this launch runs, and nothing is known against health or evidence."""
        vm, health = self.parts.enclaves.view(row.id), self.parts.probes.view(row.id)
        up = vm.phase is VmPhase.RUNNING and vm.launch_uuid == row.launch_uuid
        judged = self.executor.verdicts.get(row.id)
        if judged is not None and judged.verdict.attested is False:
            return False
        return up and (health is None or health.healthy is not False)

    async def protect_images(self) -> None:
        """Have the cache know what running and rollback-able revisions need."""
        self.parts.releases.protect(await self.parts.store.read(needed_digests))

    async def prune_images(self, unused_for_s: float) -> Sequence[KeptImage]:
        """Remove images that nothing needs and nobody used for so long. Raises StorageError."""
        await self.protect_images()
        return await self.parts.releases.prune(unused_for_s)

    async def _keep_images(self) -> None:
        """Now and then, by age; by size it is done whenever room is needed."""
        await asyncio.sleep(_IMAGES_EVERY_S)
        if self.parts.image_age_s is not None:
            await self.prune_images(self.parts.image_age_s)

    async def supply(self) -> HostSupply:
        """What the host has now, with the drain that was asked for."""
        supply = await self.parts.supply()
        held = self._orphans.listeners()
        self._latest_supply = msgspec.structs.replace(
            supply,
            draining=self.publisher.snapshot.host.draining,
            stop_grace_s=self.parts.policy.stop_grace_s,
            foreign_listeners=tuple(one for one in supply.foreign_listeners if one not in held),
        )
        return self._latest_supply

    def _listen_rules(self) -> ListenRules:
        return self._latest_supply.listen_rules if self._latest_supply else ListenRules()

    async def _know_supply(self) -> None:
        """Have it at hand, as it is now, for a decision inside a transaction."""
        with contextlib.suppress(AgentError):
            await self.supply()

    async def refresh(self, name: DeploymentName) -> None:
        """Have a new or changed deployment owned, moved and shown."""
        reconciler = self.own(name)
        await reconciler.show()
        self.wakeups.of(name).notify()

    def own(self, name: DeploymentName) -> Reconciler:
        """The reconciler of a deployment, started if it is not there."""
        known = self._reconcilers.get(name)
        if known is not None and not known[1].done():
            return known[0]
        reconciler = Reconciler(
            name,
            store=self.parts.store,
            clock=self.parts.clock,
            wakeup=self.wakeups.of(name),
            busy=lambda: self.liveness.busy(f"reconcile {name}", _TURN_S),
            observe=self._observe,
            perform=self.executor.perform,
            publish=self._publish,
            reassign_gpus=self._reassign_gpus,
            console_tail=self._console_tail,
            drain_console=self.parts.enclaves.drain_console,
            well=lambda: self.publisher.clear_problem(_problem_key(name)),
        )
        task = asyncio.create_task(self._supervise(reconciler), name=f"reconcile:{name}")
        self._reconcilers[name] = (reconciler, task)
        return reconciler

    async def _supervise(self, reconciler: Reconciler) -> None:
        """Run it again after an error: a full disk, say, must not end a deployment's life."""
        while True:
            try:
                await reconciler.run()
            except Exception as error:  # the owner of the task: told once, run again
                code = error.code if isinstance(error, AgentError) else "internal"
                news = self.publisher.raise_problem(
                    _problem_key(reconciler.name),
                    code=code,
                    severity="error",
                    detail=f"{reconciler.name} cannot be moved: {describe(error)}",
                    mend="mend the cause (see the log); it is tried again every second",
                    of_tenant=True,
                )
                if news:
                    log.exception("reconciler failed", extra={"deployment": reconciler.name})
                await asyncio.sleep(_RESTART_AFTER_S)
            else:
                self._reconcilers.pop(reconciler.name, None)
                self.wakeups.forget(reconciler.name)
                return

    async def _follow_inventory(self) -> None:
        gpus = self.parts.gpus
        seen = gpus.changed.count
        while True:
            self._show_inventory()
            seen = await gpus.changed.beyond(seen)

    def _show_inventory(self) -> None:
        inventory = self.parts.gpus.inventory
        if inventory is not None:
            self.publisher.show_inventory(inventory)

    async def _keep(self, keep: Callable[[], Awaitable[None]]) -> None:
        """Have it done for ever: a store that fails for a while must not end it."""
        while True:
            try:
                await keep()
            except AgentError as error:
                log.warning("upkeep failed", extra={"error": describe(error)})
            await asyncio.sleep(_RESTART_AFTER_S)

    async def _observe(self, name: DeploymentName, rows: Rows | None) -> Observation:
        self._resumption.look()
        parts = self.parts
        enclaves = rows.enclaves if rows else await parts.store.read(lambda tx: tx.enclaves(name))
        draining: Mapping[EnclaveId, int | None] = {}
        if rows:
            draining = await self.data_plane.count_draining(rows)
            self._observer.watch(rows)
            if any(self._observer.wants_others(row) for row in enclaves):
                await self._know_supply()
        seen = self._observer.look(name, enclaves)
        stopping = await self._host_shutdown.stopping(enclaves, seen.vms)
        return dataclasses.replace(seen, draining=draining, host_stopping=stopping)

    def _publish(self, name: DeploymentName, rows: Rows | None) -> None:
        before = self.publisher.rows.get(name)
        if rows != before:
            self._rows_changed.notify()
            self.parts.gpus.look_soon()
        present = {row.id for row in rows.enclaves} if rows else set()
        gone = self._known.get(name, set()) - present
        self._known[name] = present
        if gone:
            self.parts.preparation.look_again()
        for enclave_id in gone:
            self.parts.probes.unwatch(enclave_id)
            self.parts.enclaves.forget(enclave_id)  # a fault has its last words
            self.executor.verdicts.pop(enclave_id, None)
            self.parts.attestation.forget(enclave_id)
            self.data_plane.connections.pop(enclave_id, None)
        if rows is None:
            del self._known[name]
            self.parts.outside.unwatch(name)
            self.publisher.show_alarms(name, {})
            self.publisher.show(name, None, None)
            return
        self._observer.watch(rows)
        seen = self._observer.look(name, rows.enclaves)
        not_taken = self.executor.not_taken.get(name)
        s = situation(rows, seen)
        self.publisher.show_alarms(name, alarms(s, not_taken) | health_alarms(s))
        self.publisher.show(name, rows, seen)

    def _reassign_gpus(self, tx: Transaction, enclave_id: EnclaveId) -> None:
        now = self.parts.clock.now()
        reassign_gpus(tx, enclave_id, self._latest_supply, self._observer.quarantined(), now)

    def _console_tail(self, enclave_id: EnclaveId) -> str:
        text = self.parts.enclaves.console_tail(enclave_id, WINDOW).decode(errors="replace")
        health = self.parts.probes.view(enclave_id)
        if health is None:
            return last_words(text)
        return last_words(text, health.stage, health.stage_before)

    def _spki_of(self, enclave_id: EnclaveId) -> str | None:
        view = self.parts.probes.view(enclave_id)
        return view.spki_sha256 if view else None


def _problem_key(name: DeploymentName) -> str:
    return f"reconcile {name}"


def _everything(tx: Reader) -> tuple[list[Enclave], list[DeploymentName]]:
    """The deployments in the order in which they are to be launched after a reboot."""
    rows = tx.enclaves()
    return rows, biggest_first([row.name for row in tx.deployments()], rows)
