"""What a launch that failed is held against: those GPUs whose doing it may be, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.model.ids import Bdf, EnclaveId
from agent.model.revision import Fault
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.launch_blame import suspect, suspects
from agent.updates.planner.types import ActionKind
from simulator.boards import bdf
from simulator.rows import enclave
from simulator.simulated_host import SimulatedHost

ONE, TWO, SWITCH = bdf(1), bdf(2), bdf(0x80)
ROW = enclave("abcdefgh", gpus=(ONE, TWO), switches=(SWITCH,))
ALL = (ONE, TWO, SWITCH)
OUT_OF_MEMORY = "QEMU ended (exit status 1): cannot set up guest memory: Cannot allocate memory"
BROKEN = f"QEMU ended (exit status 1): vfio {TWO}: failed to get device info: Input/output error"

BLAMED = {
    "guest panicked": (Fault(code="guest_panicked", detail="the guest's kernel panicked"), ALL),
    "boot timeout": (Fault(code="boot_timeout", detail="the guest did not answer in time"), ALL),
    "one device": (Fault(code="qemu_exited", detail=BROKEN), (TWO,)),
    "one device later": (Fault(code="qemu_exit", detail=BROKEN), (TWO,)),
    "hang": (Fault(code="qmp_unavailable", detail="no QMP within 90 s: no connection"), ALL),
    "hang of one": (Fault(code="qmp_unavailable", detail=f"no QMP; QEMU said: {BROKEN}"), (TWO,)),
    "memory": (Fault(code="qemu_exited", detail=OUT_OF_MEMORY), ()),
    "killed": (Fault(code="qemu_exit", detail="QEMU ended (killed by SIGKILL)"), ()),
    "crash": (Fault(code="qemu_exited", detail="QEMU ended (killed by SIGSEGV)"), ()),
    "slow memory": (Fault(code="qmp_unavailable", detail=f"no QMP; {OUT_OF_MEMORY}"), ()),
    "lost": (Fault(code="vm_lost", detail="its VM is gone without a trace"), ()),
    "preflight": (Fault(code="qemu_unfit", detail="QEMU: 9.1.0: devices need 9.2"), ()),
    "no fault": (None, ()),
}


@pytest.mark.parametrize("name", BLAMED)
def test_a_fault_is_held_against_whom_it_names(name: str) -> None:
    fault, devices = BLAMED[name]
    assert suspects(fault, ROW) == devices
    assert suspect(fault) is bool(devices)


def test_an_enclave_without_devices_has_none_to_blame() -> None:
    assert suspects(Fault(code="guest_panicked", detail="x"), enclave("abcdefgh")) == ()


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    made = SimulatedHost(gpus=2)
    made.policy = made.policy.__class__(relaunch_limit=9, relaunch_backoff_s=1)
    yield made
    made.close()


def counts(host: SimulatedHost) -> dict[Bdf, int]:
    rows = host.read(lambda tx: tx.gpu_conditions())
    return {row.bdf: row.failed_launches for row in rows if row.failed_launches}


def only(host: SimulatedHost) -> EnclaveId:
    (row,) = host.read(lambda tx: tx.enclaves())
    return row.id


@pytest.mark.parametrize(
    "detail", [OUT_OF_MEMORY, "QEMU ended (exit status 1): x: SNP_LAUNCH_START"]
)
def test_launch_after_launch_that_the_host_fails_leaves_its_gpus_in_use(
    host: SimulatedHost, detail: str
) -> None:
    host.serve("v1")
    host.broken.add(ActionKind.LAUNCH)
    host.fault_code, host.fault_detail = "qemu_exited", detail
    host.die(only(host))
    host.settle(seconds=120)
    assert [action.kind for action in host.log].count(ActionKind.LAUNCH) > 4
    assert (counts(host), host.quarantined) == ({}, set())
    host.broken.clear()
    host.settle(seconds=600)
    assert host.serving_tag() == "v1"


@pytest.mark.parametrize(
    ("reason", "detail", "counted"),
    [
        ("guest-panicked", "the guest's kernel panicked", {ONE: 1}),
        ("qemu-exit", f"vfio {ONE}: failed to get device info", {ONE: 1}),
        ("qemu-exit", "QEMU ended (killed by SIGKILL)", {}),
        ("qemu-exit", OUT_OF_MEMORY, {}),
    ],
)
def test_an_update_whose_vm_ends_in_its_boot(
    host: SimulatedHost, reason: str, detail: str, counted: dict[Bdf, int]
) -> None:
    host.boot_all = lambda: None  # type: ignore[method-assign]
    host.request("v1")
    host.until(Step.BOOT)
    host.die(only(host), reason, detail)
    host.settle(seconds=20)
    assert host.current().status is UpdateStatus.FAILED
    assert counts(host) == counted


@pytest.mark.parametrize(
    ("reason", "detail", "counted"),
    [
        ("guest-reset", "the guest reset itself", {ONE: 1}),
        ("qemu-exit", "QEMU ended (killed by SIGKILL)", {}),
    ],
)
@pytest.mark.parametrize("crash", [False, True])
def test_a_relaunch_whose_vm_ends_in_its_boot_counts_once_however_often_that_is_looked_at(
    host: SimulatedHost, reason: str, detail: str, counted: dict[Bdf, int], crash: bool
) -> None:
    host.serve("v1")
    boot_all, host.boot_all = host.boot_all, lambda: None  # type: ignore[method-assign]
    host.die(only(host))
    host.settle(seconds=10)
    relaunched = host.vms[only(host)].launch_uuid
    host.die(only(host), reason, detail)
    for _ in range(3):
        answer = host.think()
        assert answer is not None
        if crash:
            host.crash()
    host.settle(seconds=10)
    assert host.vms[only(host)].launch_uuid != relaunched
    assert counts(host) == counted
    host.boot_all = boot_all  # type: ignore[method-assign]
    host.settle(seconds=60)
    assert (host.serving_tag(), counts(host)) == ("v1", {})
