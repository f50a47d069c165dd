"""What only root can try: QEMU as a user of its own, and a run directory without room."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.enclaves.port import ABSENT, EnclaveError, VmPhase
from tests.fakes import tiny_kernels
from tests.fakes.vms import lone_fleet, order, processes_of, row, tiny_image, until_printed

pytestmark = [pytest.mark.root, pytest.mark.qemu]


@pytest.fixture
def small_run_dir(short_dir: Path) -> Iterator[Path]:
    """`run` on a tmpfs of 64 KiB."""
    run = short_dir / "run"
    run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0755", "enclave-agent-test", str(run)]
    subprocess.run(mount, check=True)
    yield run
    subprocess.run(["umount", str(run)], check=True)


async def test_qemu_runs_as_its_own_user_and_sees_nothing_of_the_run_directory(
    short_dir: Path,
) -> None:
    short_dir.chmod(0o711)
    nobody = pwd.getpwnam("nobody")
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.powering_off("as nobody\n"))
    async with lone_fleet(short_dir, user="nobody") as fleet:
        identity = await fleet.launch(vm, order(image))
        process = Path("/proc") / str(identity.pid)
        status = process.joinpath("status").read_text()
        assert f"\nUid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t" in status
        assert "\nCapEff:\t0000000000000000\n" in status
        directory = short_dir / "run" / vm.id
        assert directory.stat().st_mode & 0o777 == 0o711
        assert {path.name for path in directory.iterdir()} == {
            "launch.json",
            "lock",
            "output",
            "root",
            "vm",
        }
        for path in {*directory.iterdir()} - {directory / "root"}:  # which is empty
            owner = nobody.pw_uid if path.name == "vm" else 0
            assert (path.stat().st_uid, path.stat().st_mode & 0o077) == (owner, 0)
        await until_printed(fleet, vm.id, b"as nobody")
        await fleet.stop(vm, grace_s=0)


async def test_a_vm_of_another_user_is_adopted_and_stopped(short_dir: Path) -> None:
    short_dir.chmod(0o711)
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir, user="nobody") as fleet:
        identity = await fleet.launch(vm, order(image))
        await fleet.close()
        async with lone_fleet(short_dir, user="nobody", rows=(vm,)) as later:
            assert later.view(vm.id).phase is VmPhase.RUNNING
            assert later.view(vm.id).process == identity
            await later.stop(vm, grace_s=0)
    assert processes_of(vm.launch_uuid) == []


async def test_a_user_that_does_not_exist_is_told(short_dir: Path) -> None:
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir, user="no-such-user") as fleet:
        with pytest.raises(EnclaveError, match="no user 'no-such-user'"):
            await fleet.launch(row("aaaaaaa2"), order(image))


async def test_a_run_directory_with_room_for_nothing_or_little_is_told_and_left_as_it_was(
    short_dir: Path, small_run_dir: Path
) -> None:
    """Every page that there is room for gets the launch one write further."""
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    filler = small_run_dir / "filler"
    async with lone_fleet(short_dir) as fleet:
        outcomes: list[str] = []
        for pages in range(5):
            filler.write_bytes(bytes((16 - pages) * 4096))
            vm = row("aaaaaaa2")
            try:
                await fleet.launch(vm, order(image))
            except EnclaveError as error:
                outcomes.append(error.code)
                assert processes_of(vm.launch_uuid) == []
            else:
                outcomes.append("launched")
                await fleet.stop(vm, grace_s=0)
            assert fleet.view(vm.id) == ABSENT
            assert [path.name for path in small_run_dir.iterdir()] == ["filler"]
            os.truncate(filler, 0)
        assert set(outcomes) == {"disk_full", "launched"}
        assert outcomes == sorted(outcomes)
