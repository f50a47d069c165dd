"""What an agent finds and makes of what an earlier one left, which was killed at any point."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import msgspec
import pytest

from agent.enclaves.network_user import UserNetwork
from agent.enclaves.port import ABSENT, EnclaveError, VmPhase
from agent.model.ids import EnclaveId
from tests.fakes import tiny_kernels
from tests.fakes.doomed_agent import POINTS, launch_and_die
from tests.fakes.vms import (
    SUBNET,
    lone_fleet,
    order,
    processes_of,
    row,
    running_fleet,
    tiny_image,
    until,
    until_printed,
)

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("point", POINTS)
async def test_a_launch_cut_off_anywhere_ends_as_one_vm(short_dir: Path, point: str) -> None:
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting("once\n")))
    launch_and_die(short_dir, vm, wanted, point)
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        left = processes_of(vm.launch_uuid)
        assert fleet.view(vm.id).phase is (VmPhase.RUNNING if left else VmPhase.ABSENT)
        assert len(left) == (0 if point == "attaching" else 1)

        identity = await fleet.launch(vm, wanted)
        assert [identity.pid] == processes_of(vm.launch_uuid)
        assert identity.pid in (left or [identity.pid])
        printed = await until_printed(fleet, vm.id, b"once")
        assert printed.count(b"once") == 1


@pytest.mark.parametrize("point", POINTS)
async def test_what_no_row_knows_is_removed(short_dir: Path, point: str) -> None:
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, point)
    async with lone_fleet(short_dir) as fleet:
        assert processes_of(vm.launch_uuid) == []
        assert list((short_dir / "run").iterdir()) == []
        assert fleet.view(vm.id) == ABSENT


@pytest.mark.parametrize("point", POINTS)
async def test_a_launch_needs_no_adoption_to_find_its_vm(short_dir: Path, point: str) -> None:
    """The lock alone keeps a second VM away, whatever the agent believes."""
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, point)
    left = processes_of(vm.launch_uuid)
    async with lone_fleet(short_dir, adopting=False) as fleet:
        identity = await fleet.launch(vm, wanted)
        assert processes_of(vm.launch_uuid) == [identity.pid]
        assert identity.pid in (left or [identity.pid])


async def test_a_vm_of_another_launch_is_removed_and_its_row_is_absent(short_dir: Path) -> None:
    vm, later = row("aaaaaaa2"), row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, "launched")
    async with lone_fleet(short_dir, rows=(later,)) as fleet:
        assert fleet.view(vm.id) == ABSENT
        assert processes_of(vm.launch_uuid) == []


async def test_another_launch_never_starts_beside_a_vm_that_nobody_adopted(
    short_dir: Path,
) -> None:
    vm, later = row("aaaaaaa2"), row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, "launched")
    async with lone_fleet(short_dir, adopting=False) as fleet:
        with pytest.raises(EnclaveError) as refused:
            await fleet.launch(later, wanted)
        assert refused.value.code == "enclave_occupied"
        assert len(processes_of(vm.launch_uuid)) == 1
        assert processes_of(later.launch_uuid) == []
        await fleet.stop(vm, grace_s=0)
        assert processes_of(vm.launch_uuid) == []


@pytest.mark.parametrize("point", ["forked", "started", "launched"])
async def test_a_guest_that_ended_meanwhile_is_seen_with_its_console(
    short_dir: Path, point: str
) -> None:
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.powering_off("last words\n")))
    launch_and_die(short_dir, vm, wanted, point)
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        view = await until(fleet, vm.id, lambda view: view.phase is VmPhase.EXITED)
        assert view.exit_reason == "guest-shutdown"
        assert fleet.console_tail(vm.id).count(b"last words") == 1
        await fleet.stop(vm, grace_s=1)
        assert fleet.view(vm.id) == ABSENT


async def test_a_qemu_that_ended_meanwhile_is_seen_and_cleaned_by_stop(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, "launched")
    (pid,) = processes_of(vm.launch_uuid)
    os.kill(pid, signal.SIGKILL)
    while processes_of(vm.launch_uuid):
        await asyncio.sleep(0.01)
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        view = fleet.view(vm.id)
        assert (view.phase, view.exit_reason) == (VmPhase.EXITED, "qemu-exit")
        assert view.process is not None
        assert view.process.pid == pid
        await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT
        assert list((short_dir / "run").iterdir()) == []


async def test_a_vm_that_never_ran_is_absent_and_can_be_launched(short_dir: Path) -> None:
    """Its process died before anybody recorded it: nothing to tell, as if never launched."""
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, "started")
    (pid,) = processes_of(vm.launch_uuid)
    os.kill(pid, signal.SIGKILL)
    while processes_of(vm.launch_uuid):
        await asyncio.sleep(0.01)
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        assert fleet.view(vm.id) == ABSENT
        assert list((short_dir / "run").iterdir()) == []


async def test_rows_without_any_trace_are_absent(short_dir: Path) -> None:
    rows = tuple(row(f"aaaaaaa{number}") for number in range(2, 5))
    async with lone_fleet(short_dir, rows=rows) as fleet:
        assert {fleet.view(vm.id) for vm in rows} == {ABSENT}


async def test_a_vm_outlives_the_removal_of_its_directory_and_is_still_ours(
    short_dir: Path,
) -> None:
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, "launched")
    (pid,) = processes_of(vm.launch_uuid)
    shutil.rmtree(short_dir / "run")
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        view = fleet.view(vm.id)
        assert view.phase is VmPhase.RUNNING
        assert view.process is not None
        assert view.process.pid == pid
        await fleet.stop(vm, grace_s=0)
        assert processes_of(vm.launch_uuid) == []


async def test_a_process_that_only_looks_like_the_vm_is_left_alone(short_dir: Path) -> None:
    """Somebody's own process with the launch's uuid in its arguments does not hold the lock."""
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, "launched")
    (pid,) = processes_of(vm.launch_uuid)
    script = "import time; time.sleep(60)"
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, "-uuid", vm.launch_uuid
    )
    try:
        while len(processes_of(vm.launch_uuid)) < 2:
            await asyncio.sleep(0.01)
        forgotten = short_dir / "run" / vm.id / "launch.json"
        forgotten.write_text(forgotten.read_text().replace(str(pid), str(other.pid)))
        async with lone_fleet(short_dir, rows=(vm,)) as fleet:
            process = fleet.view(vm.id).process
            assert process is not None
            assert process.pid == pid
            await fleet.stop(vm, grace_s=0)
            assert processes_of(vm.launch_uuid) == [other.pid]
    finally:
        other.kill()
        await other.wait()


async def test_a_record_of_an_earlier_boot_names_nobody(short_dir: Path) -> None:
    """The run directory outlived a reboot: its pids are other processes' now."""
    vm = row("aaaaaaa2")
    directory = short_dir / "run" / vm.id
    directory.mkdir(parents=True)
    (directory / "lock").touch()
    record = {
        "launch_uuid": vm.launch_uuid,
        "process": {"pid": os.getpid(), "start_ticks": 1, "boot_id": "earlier"},
    }
    (directory / "launch.json").write_bytes(msgspec.json.encode(record))
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        assert fleet.view(vm.id).phase is VmPhase.EXITED
        await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT


async def test_a_lock_held_by_a_stranger_is_stuck_and_is_not_launched_over(
    short_dir: Path,
) -> None:
    vm = row("aaaaaaa2")
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    directory = short_dir / "run" / vm.id
    directory.mkdir(parents=True)
    lock = directory / "lock"
    stranger = await asyncio.create_subprocess_exec("flock", "-x", str(lock), "sleep", "60")
    try:
        while not lock.exists():
            await asyncio.sleep(0.01)
        async with running_fleet(short_dir, rows=(vm,)) as fleet:
            assert fleet.view(vm.id).phase is VmPhase.STUCK
            with pytest.raises(EnclaveError):
                await fleet.launch(vm, wanted)
            with pytest.raises(EnclaveError) as stuck:
                await fleet.stop(vm, grace_s=0)
            assert stuck.value.code == "enclave_stuck"
            assert stranger.returncode is None
            stranger.kill()
            await stranger.wait()
            # `sleep` inherited the lock: the kernel holds it for as long as anybody has it.
            with pytest.raises(EnclaveError):
                await fleet.stop(vm, grace_s=0)
    finally:
        for pid in _children_of_the_lock(lock):
            os.kill(pid, signal.SIGKILL)
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT


def _children_of_the_lock(lock: Path) -> list[int]:
    """Who has the lock's file open, but for ourselves."""
    holders = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                links = [link.readlink() for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            if lock in links:
                holders.append(int(entry.name))
    return holders


async def test_eight_vms_are_adopted_within_a_second(short_dir: Path) -> None:
    rows = tuple(row(f"aaaaaaa{letter}", place) for place, letter in enumerate("abcdefgh"))
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    async with running_fleet(short_dir) as fleet:
        for vm in rows:
            await fleet.launch(vm, wanted)
    async with lone_fleet(short_dir, adopting=False) as fleet:
        begin, busy = time.monotonic(), time.process_time()
        await fleet.adopt(rows)
        took, worked = time.monotonic() - begin, time.process_time() - busy
        assert {fleet.view(vm.id).phase for vm in rows} == {VmPhase.RUNNING}
        print(f"adopted 8 VMs in {took * 1000:.0f} ms")
        assert worked < 1  # of the processor: another's work is not counted


async def test_one_enclave_that_cannot_be_made_out_keeps_no_other_waiting(
    short_dir: Path,
) -> None:
    broken, vm = row("aaaaaaa2", 1), row("aaaaaaa3", 2)
    wanted = order(tiny_image(short_dir / "image", tiny_kernels.halting()))
    launch_and_die(short_dir, vm, wanted, "launched")
    lock = short_dir / "run" / broken.id / "lock"
    lock.mkdir(parents=True)
    async with lone_fleet(short_dir, rows=(broken, vm)) as fleet:
        assert fleet.view(vm.id).phase is VmPhase.RUNNING
        assert fleet.view(broken.id).phase is VmPhase.STUCK
        assert "lock: Is a directory" in (fleet.view(broken.id).exit_detail or "")
        lock.rmdir()
        await fleet.stop(broken, grace_s=0)
        assert fleet.view(broken.id) == ABSENT


class LeakyNetwork(UserNetwork):
    """A network with something left of an enclave that nobody knows."""

    def __init__(self, subnet: str, left: EnclaveId) -> None:
        super().__init__(subnet)
        self.left = {left}

    async def list_attached(self) -> set[EnclaveId]:
        return set(self.left)

    async def detach(self, enclave_id: EnclaveId) -> None:
        self.left.discard(enclave_id)


async def test_a_card_that_no_row_knows_is_detached(short_dir: Path) -> None:
    network = LeakyNetwork(SUBNET, EnclaveId("zzzzzzz2"))
    async with lone_fleet(short_dir, network=network):
        assert network.left == set()
