"""What a VM's process can do to its host and its neighbours: tried by a program in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import Tee
from agent.enclaves.cage import FIRST_UID, Cage, cage_of, memory_max_mib, trees_of, uid_of
from agent.enclaves.cage_filter import filter_program
from agent.enclaves.cage_proof import CageProof, try_cage
from agent.enclaves.caging import Caging, program_of
from agent.enclaves.port import EnclaveError, VmPhase
from agent.enclaves.spec import (
    PlainTee,
    TapNic,
    TdxTee,
    UnixQuotes,
    UserNic,
    VmAccel,
    VsockQuotes,
)
from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.enclaves.supervisor_detached import DetachedSupervisor
from agent.host.cgroups import Cgroups, MemoryLimit
from tests.fakes import tiny_kernels
from tests.fakes.jail import ESCAPES, Jail, not_held, wrong_in
from tests.fakes.vms import (
    lone_fleet,
    order,
    processes_of,
    row,
    running_fleet,
    tiny_image,
    until_printed,
)

TAP = TapNic("enc-x", "02:00:0a:d7:00:02", fd=7)


# --- what is decided of it, without a host ------------------------------------------------------


def test_each_address_has_a_user_of_its_own() -> None:
    addresses = ("10.0.0.0", "10.255.255.255", "127.215.0.2", "172.16.0.1", "192.168.255.255")
    uids = [uid_of(one) for one in addresses]
    assert len(set(uids)) == len(uids)
    assert all(FIRST_UID <= uid < 1 << 31 for uid in uids)
    with pytest.raises(ValueError, match="no address of guests"):
        uid_of("8.8.8.8")


def test_its_memory_is_the_guests_qemus_and_a_quarter_where_devices_go_with_it() -> None:
    kvm = memory_max_mib(8192, VmAccel.KVM, passed=False)
    assert kvm == 8192 + 512 + 64
    assert memory_max_mib(8192, VmAccel.TCG, passed=False) == kvm + 1024
    assert memory_max_mib(8192, VmAccel.KVM, passed=True) == kvm + kvm // 4


@pytest.mark.parametrize(
    ("tee", "sockets", "families"),
    [
        (PlainTee(), (), ()),
        (TdxTee(VsockQuotes()), (), ("AF_VSOCK",)),
        (TdxTee(UnixQuotes(Path("/run/qgs"))), (Path("/run/qgs"),), ()),
    ],
)
def test_a_cage_has_what_its_vm_needs_and_nothing_else(
    tee: Any, sockets: tuple[Path, ...], families: tuple[str, ...]
) -> None:
    made = cage(tee=tee)
    assert (made.sockets, made.families) == (sockets, families)
    assert made.own_network
    assert not made.sysfs
    assert cage(passed=True).sysfs


def test_a_card_that_qemu_itself_connects_keeps_the_hosts_network() -> None:
    user = UserNic(
        mac="02:00:7f:d7:00:02",
        subnet="10.0.2.0/24",
        gateway="10.0.2.2",
        guest_address="10.0.2.15",
        forwards=(),
    )
    made = cage(nic=user)
    assert (made.own_network, made.families) == (False, ("AF_INET",))


def cage(**changes: Any) -> Cage:
    values: dict[str, Any] = {
        "address": "10.215.0.2",
        "memory_mib": 256,
        "vcpus": 2,
        "accel": VmAccel.KVM,
        "tee": PlainTee(),
        "nic": TAP,
        "passed": False,
        "program": Path("/usr/bin/qemu-system-x86_64"),
    }
    return cage_of(**(values | changes))


def test_programs_outside_usr_are_seen_with_what_lies_beside_them() -> None:
    usr = Path("/usr")
    assert trees_of(Path("/usr/local/bin/qemu")) == (usr,)
    assert trees_of(Path("/opt/qemu/bin/qemu")) == (usr, Path("/opt/qemu"))
    assert trees_of(Path("/opt/qemu/qemu")) == (usr, Path("/opt/qemu"))
    assert trees_of(Path("/bin/qemu")) == (usr, Path("/bin"))


def test_a_script_is_no_program_for_a_cage(tmp_path: Path) -> None:
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    with pytest.raises(EnclaveError, match="is a script: name QEMU itself"):
        program_of(str(script))
    with pytest.raises(EnclaveError, match="there is no"):
        program_of(str(tmp_path / "none"))


def test_the_filter_is_of_whole_instructions_and_the_kernel_takes_so_many() -> None:
    program = filter_program(("AF_VSOCK",), 1000)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # BPF_MAXINSNS
    actions = {program[at + 4 : at + 8] for at in range(0, len(program), 8) if program[at] == 0x06}
    kinds = {int.from_bytes(one, "little") & 0xFFFF0000 for one in actions}
    assert kinds == {0x7FFF0000, 0x00050000}  # allow, and answer with an error: nothing kills


async def test_a_proof_is_believed_of_that_qemu_and_kernel_alone(tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_text("one")
    binary.chmod(0o755)
    proof = CageProof(tmp_path)
    assert "no guest has been run" in str(await proof.lacks(str(binary), Tee.TDX))
    proof.record(str(binary), Tee.TDX)
    assert await proof.lacks(str(binary), Tee.TDX) is None
    assert "another QEMU" in str(await proof.lacks(str(binary), Tee.SEV_SNP))
    binary.write_text("another")
    assert "another QEMU" in str(await proof.lacks(str(binary), Tee.TDX))


# --- what holds on a host, without systemd ------------------------------------------------------


@pytest.fixture
async def jail(short_dir: Path) -> AsyncIterator[Jail]:
    short_dir.chmod(0o711)
    made = Jail(short_dir, DetachedSupervisor(cgroups=Cgroups()))
    try:
        yield made
    finally:
        await made.leave()


@pytest.mark.root
async def test_nothing_that_a_taken_qemu_attempts_comes_off(jail: Jail) -> None:
    neighbour = await jail.start("stay", 2)
    await jail.told(2)
    with jail.qmp_of_the_first():
        taken = await jail.start("end", 3, neighbour)
        (said,) = await jail.told(3)
    assert set(said["outcomes"]) == set(ESCAPES)
    assert not_held(said["outcomes"]) == {}
    assert wrong_in(said["state"]) == []
    assert said["state"]["uid"] == uid_of("10.215.0.3")
    async with asyncio.timeout(30):
        await taken.wait()
    assert taken.reap() == "exit status 0"  # nothing of it was answered by a signal
    assert not neighbour.ended


@pytest.mark.root
async def test_at_its_limits_it_is_refused_tasks_and_ended_for_memory_which_is_told(
    jail: Jail,
) -> None:
    crowding = await jail.start("crowd", 4, tasks_max=40)
    _, told = await jail.told(4, 2)
    assert 20 < told["threads"] < 40
    eating = await jail.start("eat", 5, memory_max_mib=64)
    limit = MemoryLimit(eating.identity.pid, "enclave-jailed05")
    assert not limit.was_hit
    async with asyncio.timeout(60):
        await eating.wait()
        await crowding.wait()
    assert limit.was_hit
    limit.close()
    assert not limit.was_hit  # no more than is known
    assert eating.reap() == "killed by SIGKILL"


@pytest.mark.root
async def test_a_program_that_is_not_there_is_told_and_nothing_of_it_runs(jail: Jail) -> None:
    home = jail.home / "enclave-jailed06"
    for name in ("vm", "root"):
        (home / name).mkdir(parents=True)
    made = Cage(uid=uid_of("10.215.0.6"), memory_max_mib=64, tasks_max=9, trees=(Path("/usr"),))
    request = StartRequest(
        name="enclave-jailed06",
        argv=["/nowhere/qemu", "-uuid", "caged-nowhere"],
        pass_fds=(),
        output=home / "output",
        writable=(home / "vm",),
        cage=made,
        root=home / "root",
    )
    jail.names.append("enclave-jailed06")
    with pytest.raises(SupervisorError, match="/nowhere/qemu"):
        await jail.supervisor.start(request)
    assert processes_of("caged-nowhere") == []


@pytest.mark.root
async def test_whether_a_cage_can_be_made_is_tried(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_dir.chmod(0o711)
    supervisor = DetachedSupervisor(cgroups=Cgroups())
    assert await try_cage(supervisor, short_dir, "qemu-system-x86_64") is None
    monkeypatch.setattr("agent.enclaves.cage_order.ROOT_NAMES", ("/nowhere",))
    fault = await try_cage(supervisor, short_dir, "qemu-system-x86_64")
    assert "cannot start /usr/bin/true" in str(fault)


@pytest.mark.root
@pytest.mark.qemu
async def test_a_caged_vm_is_adopted_by_a_later_agent_and_stopped(short_dir: Path) -> None:
    short_dir.chmod(0o711)
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting("caged\n"))
    parts = {
        "caging": Caging(),
        "supervisor": DetachedSupervisor(cgroups=Cgroups()),
    }
    async with running_fleet(short_dir, **parts) as fleet:
        identity = await fleet.launch(vm, order(image))
        status = Path("/proc", str(identity.pid), "status").read_text()
        assert f"\nUid:\t{uid_of(vm.address)}\t" in status
        assert "\nSeccomp:\t2\n" in status
        assert (
            Path("/proc", str(identity.pid), "ns/mnt").readlink()
            != Path("/proc/self/ns/mnt").readlink()
        )
        await until_printed(fleet, vm.id, b"caged")
    async with lone_fleet(short_dir, rows=(vm,), **parts) as later:
        assert later.view(vm.id).phase is VmPhase.RUNNING
        assert later.view(vm.id).process == identity
        await later.stop(vm, grace_s=0)
    assert processes_of(vm.launch_uuid) == []
    assert not any(path.exists() for path in Cgroups()._places(f"enclave-{vm.id}"))


@pytest.mark.root
@pytest.mark.qemu
async def test_a_vm_that_is_ended_at_its_memory_limit_says_so(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launch, or its end where it came so far."""
    short_dir.chmod(0o711)
    monkeypatch.setattr("agent.enclaves.cage._OVERHEAD_MIB", -1140)
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    parts = {"caging": Caging(), "supervisor": DetachedSupervisor(cgroups=Cgroups())}
    async with lone_fleet(short_dir, **parts) as fleet:
        with pytest.raises(EnclaveError, match="at its memory limit"):
            await fleet.launch(vm, order(image))
