"""A host on which everything is done at once: VMs, probes and a data plane of values.

It stands at the ports of the engine. What runs above it is real: service, admission, reconcilers,
executor, board, and whichever store is given. Time is a manual clock's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.attestation.port import Attestation
from agent.attestation.unattested import Unattested
from agent.capacity.supply import HostSupply
from agent.enclaves.port import (
    ABSENT,
    EnclaveError,
    LaunchOrder,
    RestoredOrphan,
    ServesBooted,
    VmPhase,
    VmView,
)
from agent.host.suspension import Suspensions
from agent.host.wake import KeyedWake
from agent.model.enclave import Enclave, Endpoint, ProcessIdentity
from agent.model.ended_console import EndedConsole
from agent.model.ids import DeploymentName, EnclaveId, HostId
from agent.model.power_button import Press
from agent.model.resources import Amounts, Listen
from agent.model.revision import Revision
from agent.model.update import Update
from agent.probes.port import (
    HealthView,
    ListenerReach,
    OutsideTarget,
    OutsideView,
    ProbeTarget,
)
from agent.releases.port import Releases
from agent.store.port import Store
from agent.traffic.port import Refused, RouteOrder, Unheld
from agent.updates.engine.commands import UpdateEngine
from agent.updates.engine.dependencies import EngineDependencies
from agent.updates.engine.engine import EngineRuntime
from agent.updates.engine.host_shutdown import AskHost, stays_up
from agent.updates.orders import Caller, Change, NewDeployment
from agent.updates.planner.types import Policy
from agent.updates.secrets.at_rest import AtRest
from agent.updates.secrets.values import SecretValues
from agent.updates.snapshot.snapshot import DeploymentFacts, HostFacts, Resolved
from simulator.boards import bdf, cards
from simulator.fake_gpus import FakeGpus
from simulator.instant_parts import InstantPreparer, InstantReleases
from simulator.manual_clock import ManualClock

POLICY = Policy(dwell_s=0, soak_s=0, drain_s=0, stop_grace_s=0)
CALLER = Caller(name="test")


class InstantVms:
    """Satisfies `agent.enclaves.port.Enclaves`."""

    accel = "tcg"

    def __init__(self) -> None:
        self.changed = KeyedWake[EnclaveId]()
        self.running: dict[EnclaveId, VmView] = {}
        self.failing: set[str] = set()  # tags with which no QEMU starts
        self.drained: set[EnclaveId] = set()  # of these the console was read
        self.stopping: Callable[[], None] = lambda: None  # called while one is stopped
        self.graces: list[float] = []  # that each was given to power off
        self.press = Press.UNCLEAR  # what comes of a power button
        self._pid = 1000

    async def start(self) -> None: ...

    def find_unrecorded(self, rows: Sequence[Enclave]) -> Sequence[RestoredOrphan]:
        return ()

    async def adopt(
        self, rows: Sequence[Enclave], spare: Sequence[RestoredOrphan] = ()
    ) -> None: ...

    async def remove(self, spared: EnclaveId, grace_s: float) -> None: ...

    def view(self, enclave_id: EnclaveId) -> VmView:
        return self.running.get(enclave_id, ABSENT)

    async def launch(self, enclave: Enclave, order: LaunchOrder) -> ProcessIdentity:
        if order.release.tag in self.failing:
            raise EnclaveError("qemu_exited", f"QEMU does not start with {order.release.tag}")
        self._pid += 1
        process = ProcessIdentity(pid=self._pid, start_ticks=1, boot_id="boot-1")
        self.running[enclave.id] = VmView(
            phase=VmPhase.RUNNING, launch_uuid=enclave.launch_uuid, process=process
        )
        self.changed.tell(enclave.id)
        return process

    def die(self, enclave_id: EnclaveId) -> None:
        """The guest ends by itself."""
        ended = msgspec.structs.replace(self.running[enclave_id], phase=VmPhase.EXITED)
        self.running[enclave_id] = ended
        self.changed.tell(enclave_id)

    async def finish(self, enclave: Enclave, grace_s: float, serves_booted: ServesBooted) -> Press:
        """What powers off is ended at once."""
        self.stopping()
        self.graces.append(grace_s)
        if (view := self.running.get(enclave.id)) is not None:
            self.running[enclave.id] = msgspec.structs.replace(view, phase=VmPhase.STOPPING)
        self.changed.tell(enclave.id)
        return self.press

    async def stop(
        self, enclave: Enclave, grace_s: float, serves_booted: ServesBooted | None = None
    ) -> Press:
        view = self.running.pop(enclave.id, None)
        if view is None or view.phase is not VmPhase.STOPPING:
            self.stopping()
            self.graces.append(grace_s)
        self.changed.tell(enclave.id)
        return self.press if grace_s else Press.NONE

    def endpoint(self, enclave: Enclave, revision: Revision, guest_port: int) -> Endpoint:
        return Endpoint(address=enclave.address, port=guest_port)

    def addresses(self) -> Sequence[str]:
        return [f"10.9.0.{number}" for number in range(2, 20)]

    def console_tail(self, enclave_id: EnclaveId, max_bytes: int = 8192) -> bytes:
        return b"its last words" if enclave_id in self.drained else b""

    async def drain_console(self, enclave_id: EnclaveId) -> None:
        self.drained.add(enclave_id)

    def forget(self, enclave_id: EnclaveId) -> None: ...

    def ended_consoles(self, deployment: DeploymentName) -> Sequence[EndedConsole]:
        return ()

    def ended_console_tail(self, enclave_id: EnclaveId, max_bytes: int) -> bytes | None:
        return None

    def forget_others(self, known: Collection[EnclaveId]) -> None: ...

    async def close(self) -> None: ...


class InstantProbes:
    """Satisfies `agent.probes.port.Probes`: whatever is watched is healthy."""

    def __init__(self, clock: ManualClock) -> None:
        self.changed = KeyedWake[EnclaveId]()
        self.watched: dict[EnclaveId, HealthView] = {}
        self.begun_anew = 0
        self._clock = clock

    def watch(self, target: ProbeTarget) -> None:
        known = self.watched.get(target.enclave)
        if known is None or known.launch_uuid != target.launch_uuid:
            self.watched[target.enclave] = HealthView(
                launch_uuid=target.launch_uuid,
                answered=True,
                boot_complete=True,
                healthy=True,
                healthy_since=self._clock.now(),
                spki_sha256="key",
            )
            self.changed.tell(target.enclave)

    def unwatch(self, enclave_id: EnclaveId) -> None:
        self.watched.pop(enclave_id, None)

    def view(self, enclave_id: EnclaveId) -> HealthView | None:
        return self.watched.get(enclave_id)

    def begin_anew(self) -> None:
        self.begun_anew += 1

    async def serves_booted(self, endpoint: Endpoint) -> bool:
        return True

    async def close(self) -> None: ...


class InstantTraffic:
    """Satisfies `agent.traffic.port.Traffic`."""

    kind = "userspace"

    def __init__(self) -> None:
        self.refusal: Callable[[Listen], str | None] = lambda _: None
        self.open = 0  # connections to every enclave
        self.unheld: dict[Listen, Unheld] = {}
        self.orders: dict[DeploymentName, RouteOrder] = {}
        self.has_refused = Refused()

    async def start(self) -> None: ...

    async def apply(self, order: RouteOrder) -> None:
        self.orders[order.deployment] = order

    async def remove(self, deployment: DeploymentName) -> None:
        self.orders.pop(deployment, None)

    async def observe(self) -> Mapping[DeploymentName, RouteOrder]:
        return dict(self.orders)

    async def hold_ports(self) -> Mapping[Listen, Unheld]:
        return self.unheld

    async def connections(self, endpoint: Endpoint) -> int:
        return self.open

    async def reset(self, endpoint: Endpoint) -> int:
        return self.open

    async def refused(self) -> Refused:
        return self.has_refused

    async def close(self) -> None: ...


class InstantOutside:
    """Satisfies `agent.probes.port.Outside`: listeners are reached, or not, as it is told."""

    def __init__(self) -> None:
        self.changed = KeyedWake[DeploymentName]()
        self.targets: dict[DeploymentName, OutsideTarget] = {}
        self.reached: bool | None = True
        self.asked: deque[OutsideTarget] = deque(maxlen=16)  # each decision once, the newest

    def watch(self, name: DeploymentName, target: OutsideTarget) -> None:
        known = self.targets.get(name)
        self.targets[name] = target
        if known is None or known.generation != target.generation:
            self.asked.append(target)

    def unwatch(self, name: DeploymentName) -> None:
        self.targets.pop(name, None)

    def tell(self, reached: bool | None) -> None:
        """From here on they are, or are not."""
        self.reached = reached
        self.changed.tell(*self.targets)

    def view(self, name: DeploymentName) -> OutsideView | None:
        target = self.targets.get(name)
        if target is None:
            return None
        reaches = tuple(
            ListenerReach(
                listen=one.listen,
                reached=self.reached,
                since=None,
                problem="no answer" if self.reached is False else None,
                by_outside=True,
                doubtful=self.reached is None,
            )
            for one in target.listeners
        )
        return OutsideView(generation=target.generation, listeners=reaches)

    async def run(self) -> None: ...


def new(name: DeploymentName, tag: str, port: int = 8443, **options: Any) -> NewDeployment:
    """A request for a deployment that listens on the loopback."""
    listen = Listen(address="127.0.0.1", port=port)
    return NewDeployment(name=name, repo="hello", tag=tag, **({"listen": listen} | options))


class InstantHost:
    """An engine on all of these. `supply` is what the host has; `gpus`: how many cards."""

    def __init__(
        self,
        store: Store,
        clock: ManualClock,
        directory: Path,
        releases: Releases | None = None,
        *,
        at_rest: AtRest | None = None,
        gpus: int = 0,
        policy: Policy = POLICY,
        host_stopping: AskHost = stays_up,
        attestation: Attestation | None = None,
    ) -> None:
        self.clock = clock
        self.outside = InstantOutside()
        self.vms = InstantVms()
        self.probes = InstantProbes(clock)
        self.traffic = InstantTraffic()
        self.releases = InstantReleases()
        self.preparer = InstantPreparer(store, clock)
        self.gpus = FakeGpus()
        self._slept_s = 0.0
        self.supply = HostSupply(
            memory_mib=8192,
            vcpus=16,
            addresses=tuple(self.vms.addresses()),
            disk_free_mib=100_000,
            boards=cards(map(bdf, range(1, gpus + 1))),
        )
        parts = EngineDependencies(
            store=store,
            clock=clock,
            releases=releases or self.releases,
            enclaves=self.vms,
            probes=self.probes,
            traffic=self.traffic,
            attestation=attestation or Unattested(),
            secret_values=SecretValues(directory / "secrets", directory / "key", at_rest),
            gpus=self.gpus,
            supply=self._supply,
            policy=policy,
            preparation=self.preparer,
            host_id=HostId("tests"),
            host_stopping=host_stopping,
            outside=self.outside,
            suspensions=Suspensions(lambda: self._slept_s, lambda: 0.0),
        )
        self.runtime = EngineRuntime(parts, _facts(clock))
        self.engine = UpdateEngine(self.runtime)

    async def restart(self) -> None:
        """The agent ends and is started again; the machine is as it was."""
        await self.runtime.close()
        self.runtime = EngineRuntime(self.runtime.parts, _facts(self.clock))
        self.engine = UpdateEngine(self.runtime)
        await self.runtime.start()

    def suspend(self, seconds: float) -> None:
        """The machine sleeps for so long; who waits on a timer is not woken by that."""
        self._slept_s += seconds
        self.clock.advance(seconds)

    async def _supply(self) -> HostSupply:
        return self.supply

    async def deploy(self, name: DeploymentName, tag: str, port: int = 8443) -> Update:
        return await self.finish(await self.engine.deploy(new(name, tag, port), CALLER))

    async def update(self, name: DeploymentName, tag: str, **options: Any) -> Update:
        change = Change(tag=tag, **options)
        return await self.finish(await self.engine.update(name, change, CALLER))

    async def until(self, name: DeploymentName, holds: Callable[[DeploymentFacts], bool]) -> None:
        """Let time pass until what is shown of a deployment is so."""
        async with asyncio.timeout(20):
            while True:
                seen = self.runtime.publisher.changed.count
                facts = self.engine.snapshot.deployments.get(name)
                if facts is not None and holds(facts):
                    return
                await self._pass_time(seen)

    async def _pass_time(self, seen: int) -> None:
        """A second, unless something happens; never while the store is still at work.

        On a busy machine the store's thread may not run for long: what waits for it must not find
        that its time is over.
        """
        changed = self.runtime.publisher.changed
        if await changed.beyond(seen, 0.005) != seen:
            return
        for _ in range(3):  # behind what is being written, and what follows from that
            await self.runtime.parts.store.transact(lambda _: None)
            if changed.count != seen:
                return
        self.clock.advance(1)
        self.runtime.wakeups.notify()

    async def finish(self, update: Update) -> Update:
        """Let time pass until it is over."""
        while True:
            seen = self.runtime.publisher.changed.count
            facts = self.engine.snapshot.deployments[update.deployment]
            if facts.update and facts.update.id == update.id and not facts.update.running:
                return facts.update
            await self._pass_time(seen)


Make = Callable[..., Awaitable[InstantHost]]  # of the size that is asked for, and started


def _facts(clock: ManualClock) -> HostFacts:
    plain = Resolved(value="none", reason="tests")
    return HostFacts(
        id="tests",
        agent_version="0",
        tee=plain,
        accel=plain,
        supervisor=plain,
        network=plain,
        traffic=plain,
        started_at=clock.now(),
        draining=False,
        inventory_complete=True,
        simulated=False,
        free=Amounts(),
        total=Amounts(),
    )
