"""GPUs in the life of an update: whose, when dirty, when requalified, and what the engine says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.enclaves.port import ABSENT, EnclaveError, VmPhase, VmView
from agent.enclaves.preflight import Lack, PreflightError
from agent.inventory.preparation.errors import GpuHeldError, Holder, PreparationError
from agent.inventory.preparation.records import begin, finish, mark_used
from agent.model.gpu import CcMode, CcModes, GpuUse
from agent.model.ids import Bdf, EnclaveId
from agent.model.reasons import ReasonCode, Strategy
from agent.model.resources import Demand
from agent.model.revision import Wish
from agent.model.update import Step, UpdateStatus
from agent.releases.measurement import unmeasured
from agent.updates.admission.gpus import gpu_uses
from agent.updates.engine.executor import Executor
from agent.updates.engine.preflight import Preflight, no_preflight
from agent.updates.errors import RefusedError
from agent.updates.orders import NewLease
from agent.updates.planner.types import Action, ActionKind
from agent.updates.secrets.values import SecretValues
from agent.updates.secrets.versions import Secrets
from simulator.boards import bdf
from simulator.simulated_host import BROKEN_GPU, CALLER, NAME, SimulatedHost
from tests.fakes.leasing import TaggedReleases, leasing_of

ONE, TWO = bdf(1), bdf(2)


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    made = SimulatedHost(gpus=2)
    yield made
    made.close()


def uses(host: SimulatedHost) -> dict[Bdf, GpuUse]:
    return host.read(gpu_uses)


def refusal(host: SimulatedHost, tag: str, **options: object) -> list[ReasonCode]:
    with pytest.raises(RefusedError) as error:
        host.request(tag, **options)
    return [reason.code for reason in error.value.reasons]


def test_an_update_runs_beside_the_old_on_another_gpu_and_leaves_the_old_one_dirty(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    assert uses(host)[ONE].owner is not None
    assert host.request("v2").strategy is Strategy.BLUE_GREEN
    (row,) = [row for row in host.read(lambda tx: tx.enclaves()) if row.gpus == (TWO,)]
    assert row.gpu_mode is CcMode.ON
    host.clean_gpus = lambda: None  # type: ignore[method-assign]  # the workshop takes its time
    host.until(Step.RETIRE)
    host.settle(seconds=20)
    assert uses(host)[ONE] == GpuUse(
        owner=None, clean=False, cc_mode=CcModes(active=CcMode.ON, pending=CcMode.ON)
    )
    assert refusal(host, "v3") == [ReasonCode.GPUS_DIRTY]


def test_a_whole_host_is_stopped_first_and_its_gpu_requalified_in_between() -> None:
    host = SimulatedHost(gpus=1)
    host.serve("v1")
    host.log.clear()
    assert host.request("v2").strategy is Strategy.STOP_THEN_START
    host.settle()
    kinds = [action.kind for action in host.log]
    stop, clean = kinds.index(ActionKind.STOP), kinds.index(ActionKind.REQUALIFY)
    assert stop < clean < kinds.index(ActionKind.LAUNCH)
    assert host.serving_tag() == "v2"
    told = [(e.gpu, e.from_, e.to) for e in host.read(lambda tx: tx.events(0)) if e.kind == "gpu"]
    assert (ONE, "clean", "dirty") in told
    host.close()


def test_a_gpu_that_does_not_requalify_fails_the_update_in_its_step() -> None:
    host = SimulatedHost(gpus=1)
    host.serve("v1")
    host.broken.add(ActionKind.REQUALIFY)
    host.request("v2")
    host.settle()
    update = host.current()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.RELEASE)
    host.broken.clear()
    assert host.request("v3").strategy is Strategy.FRESH
    host.settle()
    assert host.serving_tag() == "v3"
    host.close()


def test_a_look_that_is_older_than_the_end_of_an_enclave_gives_nothing_away(
    host: SimulatedHost,
) -> None:
    """The supply was read while the GPU was held; it is nobody's now, and not clean."""
    host.serve("v1")
    host.clean_gpus = lambda: None  # type: ignore[method-assign]
    host.wish(Wish.STOP)
    host.settle(seconds=30)
    assert host.read(lambda tx: tx.enclaves()) == []
    host.request("v1")
    (row,) = host.read(lambda tx: tx.enclaves())
    assert row.gpus == (TWO,)


def test_launches_that_fail_are_counted_against_the_gpus_and_one_that_works_clears_them(
    host: SimulatedHost,
) -> None:
    def failed() -> list[int]:
        rows = host.read(lambda tx: tx.gpu_conditions())
        return [row.failed_launches for row in rows if row.bdf == ONE]

    host.serve("v1")
    host.broken.add(ActionKind.LAUNCH)
    host.fault_code, host.fault_detail = "qemu_exited", BROKEN_GPU
    (row,) = host.read(lambda tx: tx.enclaves())
    host.die(row.id)
    host.settle(seconds=10)
    assert failed()[0] >= 1
    host.broken.clear()
    host.settle(seconds=120)
    assert failed() == [0]
    assert host.serving_tag() == "v1"


def failed_launches(host: SimulatedHost) -> int:
    (row,) = host.read(lambda tx: tx.gpu_conditions())
    return row.failed_launches


def test_guests_that_do_not_boot_are_counted_against_the_gpu_until_one_does() -> None:
    host = SimulatedHost(gpus=1)
    boots = host.boot_all
    host.boot_all = lambda: None  # type: ignore[method-assign]  # the guests stay silent
    for failed in range(2):
        host.request(f"v{failed}")
        host.settle(seconds=300)
        assert host.current().fault is not None
        assert host.current().fault.code == "boot_timeout"
        assert failed_launches(host) == failed + 1
    host.boot_all = boots  # type: ignore[method-assign]
    host.serve("v3")
    assert (host.serving_tag(), failed_launches(host)) == ("v3", 0)
    host.close()


def test_a_cancel_of_a_boot_says_nothing_of_its_gpu() -> None:
    host = SimulatedHost(gpus=1)
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.request("v1")
    host.until(Step.BOOT)
    host.flag(cancel_requested=True)
    host.settle(seconds=60)
    assert host.current().status is UpdateStatus.CANCELLED
    assert failed_launches(host) == 0
    host.close()


def test_a_lease_holds_its_gpu_and_hands_over_that_very_one(host: SimulatedHost) -> None:
    leases = leasing_of(host.clock, host.store, host.supply())
    demand = Demand(memory_mib=256, vcpus=1, gpus=1)
    lease = host.loop.run_until_complete(leases.grant(NewLease(demand=demand, ttl_s=60), CALLER))
    assert lease.gpus == (ONE,)
    host.request("v1", lease=lease.id)
    (row,) = host.read(lambda tx: tx.enclaves())
    assert row.gpus == (ONE,)
    claims = {claim.key: claim.holder for claim in host.read(lambda tx: tx.claims())}
    assert claims[ONE] == row.id


def test_what_the_inventory_is_told_follows_from_claims_and_conditions(
    host: SimulatedHost,
) -> None:
    now = host.clock.now()
    host.serve("v1")
    (row,) = host.read(lambda tx: tx.enclaves())
    host.transact(lambda tx: mark_used(tx, [TWO], EnclaveId("gone"), now))
    assert uses(host)[ONE].owner == row.id
    assert uses(host)[TWO] == GpuUse(clean=False)
    host.transact(lambda tx: begin(tx, [TWO], None, now))
    assert uses(host)[TWO] == GpuUse(clean=False, preparing=True)
    host.transact(lambda tx: finish(tx, [TWO], {TWO: None}, now))
    assert uses(host)[TWO] == GpuUse()


@dataclass
class Recorder:
    """Prepares nothing, and says what it was asked for."""

    asked: list[tuple[str, tuple[Bdf, ...], CcMode | None]] = field(default_factory=list)
    examined: list[tuple[Bdf, ...]] = field(default_factory=list)
    aside: list[tuple[tuple[Bdf, ...], str]] = field(default_factory=list)
    raises: PreparationError | None = None

    async def start(self) -> None: ...

    async def keep(self) -> None: ...

    def look_again(self) -> None: ...

    async def examine(self, devices: Sequence[Bdf]) -> None:
        self.examined.append(tuple(devices))

    async def make_ready(
        self, enclave: EnclaveId, devices: Sequence[Bdf], mode: CcMode | None
    ) -> None:
        self.asked.append((enclave, tuple(devices), mode))
        if self.raises:
            raise self.raises

    async def set_aside(self, devices: Sequence[Bdf], reason: str) -> None:
        self.aside.append((tuple(devices), reason))


class LocalReleases(TaggedReleases):
    def local(self, release: object) -> str:
        return "here"


def executor(
    host: SimulatedHost,
    gpus: Recorder,
    vms: object = None,
    preflight: Preflight = no_preflight,
) -> Executor:
    async def nothing(*_: object) -> None: ...

    return Executor(
        store=host.store,
        releases=LocalReleases(),
        enclaves=vms or SimpleNamespace(view=lambda _: ABSENT, launch=nothing),
        traffic=None,
        attestation=None,
        secrets=Secrets(host.store, SecretValues(Path("/nonexistent"), Path("/nonexistent"))),
        preparation=gpus,
        host_id="h",
        spki_of=lambda _: None,
        now=host.clock.now,
        measured=unmeasured,
        keeps_route=lambda _: False,
        restart_old=nothing,
        preflight=preflight,
    )


def test_the_executor_has_gpus_made_ready_before_anything_starts_on_them(
    host: SimulatedHost,
) -> None:
    update = host.request("v1")
    gpus = Recorder()
    (row,) = host.read(lambda tx: tx.enclaves())
    for kind in (ActionKind.PREPARE, ActionKind.LAUNCH, ActionKind.REQUALIFY):
        key = row.launch_uuid if kind is ActionKind.LAUNCH else ""
        action = Action(kind, enclave=update.enclave, key=key)
        outcome = host.loop.run_until_complete(executor(host, gpus).perform(NAME, action))
        assert outcome.fault is None
    assert gpus.asked == [(row.id, (ONE,), CcMode.ON)] * 3


def test_what_the_old_enclave_has_is_not_touched_before_it_is_stopped() -> None:
    host = SimulatedHost(gpus=1)
    host.serve("v1")
    update = host.request("v2")
    gpus = Recorder()
    action = Action(ActionKind.PREPARE, enclave=update.enclave)
    host.loop.run_until_complete(executor(host, gpus).perform(NAME, action))
    assert gpus.asked == []
    assert gpus.examined == [(ONE,)]
    host.close()


def test_a_gpu_that_is_held_is_a_fault_with_its_code_and_the_holder(host: SimulatedHost) -> None:

    update = host.request("v1")
    holder = Holder(42, "dcgm", Path("/dev/nvidia0"))
    gpus = Recorder(raises=GpuHeldError(ONE, [holder]))
    action = Action(ActionKind.PREPARE, enclave=update.enclave)
    outcome = host.loop.run_until_complete(executor(host, gpus).perform(NAME, action))
    assert outcome.fault is not None
    assert outcome.fault.code == "gpu_held"
    assert "dcgm (pid 42" in outcome.fault.detail


def test_the_gpus_of_a_qemu_that_the_kernel_keeps_are_set_aside(host: SimulatedHost) -> None:
    async def stop(*_: object) -> None:
        raise EnclaveError("enclave_stuck", "process 7 was killed and is still there")

    host.serve("v1")
    (row,) = host.read(lambda tx: tx.enclaves())
    stuck = VmView(phase=VmPhase.STUCK, launch_uuid=row.launch_uuid)
    gpus = Recorder()
    acting = executor(host, gpus, SimpleNamespace(view=lambda _: stuck, stop=stop))
    action = Action(ActionKind.STOP, enclave=row.id)
    outcome = host.loop.run_until_complete(acting.perform(NAME, action))
    assert outcome.fault is not None
    assert outcome.fault.code == "enclave_stuck"
    ((devices, reason),) = gpus.aside
    assert devices == (ONE,)
    assert row.id in reason


def test_a_host_that_is_not_ready_fails_in_prepare_and_before_a_launch(
    host: SimulatedHost,
) -> None:
    asked: list[bool] = []

    async def preflight(enclave: object, image: object, *, prepared: bool) -> None:
        asked.append(prepared)
        raise PreflightError([Lack("tee_unavailable", "SEV-SNP is off", "enable it")])

    update = host.request("v1")
    (row,) = host.read(lambda tx: tx.enclaves())
    gpus = Recorder()
    acting = executor(host, gpus, preflight=preflight)
    for kind, prepared in ((ActionKind.PREPARE, False), (ActionKind.LAUNCH, True)):
        action = Action(kind, enclave=update.enclave, key=row.launch_uuid if prepared else "")
        outcome = host.loop.run_until_complete(acting.perform(NAME, action))
        assert outcome.fault is not None
        assert (outcome.fault.code, asked[-1]) == ("tee_unavailable", prepared)
        assert "SEV-SNP is off (enable it)" in outcome.fault.detail
    assert len(gpus.asked) == 1  # nothing was touched before the first look
