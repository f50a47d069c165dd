"""A VM with a simulated secure processor: what is checked before it starts, and who serves it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import Tee
from agent.enclaves.port import ABSENT, EnclaveError, VmPhase
from agent.host.process import argv_of
from agent.model.enclave import ProcessIdentity
from agent.model.ids import EnclaveId
from agent.model.measurement import MeasuredLaunch
from agent.model.release import Release
from agent.releases.measurement import SnpMeasurements
from tests.fakes import tiny_kernels
from tests.fakes.tiny_firmware import tiny_firmware
from tests.fakes.vms import (
    Image,
    lone_fleet,
    order,
    processes_of,
    row,
    running_fleet,
    tiny_image,
    until,
)

pytestmark = pytest.mark.qemu
PROMISED = "ab" * 48


class Processor:
    """Takes note of whom it serves."""

    def __init__(self) -> None:
        self.serving: dict[EnclaveId, tuple[ProcessIdentity, Path]] = {}
        self.begun = asyncio.Event()

    async def serve(self, enclave_id: EnclaveId, process: ProcessIdentity, socket: Path) -> None:
        self.serving[enclave_id] = (process, socket)
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            del self.serving[enclave_id]


def promise(digest: str = PROMISED) -> dict[str, Any]:
    """A fleet's parts: whatever is measured has this digest."""
    measurements = SnpMeasurements(digest=lambda launch: bytes.fromhex(digest))
    return {"tee": Tee.SIMULATED, "check_launch": measurements.check_launch}


def measured_image(home: Path) -> Image:
    image = tiny_image(home / "image", tiny_kernels.halting())
    firmware = home / "image" / "firmware"
    firmware.write_bytes(tiny_firmware())
    return Image(
        files=msgspec.structs.replace(image.files, firmware=firmware),
        release=msgspec.structs.replace(
            image.release,
            firmware_sha256=hashlib.sha256(firmware.read_bytes()).hexdigest(),
            snp_measurement=PROMISED,
        ),
    )


async def test_its_processor_is_played_for_as_long_as_it_is_watched(short_dir: Path) -> None:
    vm, wanted = row("aaaaaaa2"), order(measured_image(short_dir))
    first, second = Processor(), Processor()
    async with running_fleet(short_dir, processor=first, **promise()) as fleet:
        identity = await fleet.launch(vm, wanted)
        assert fleet.view(vm.id).simulated
        await first.begun.wait()
        process, socket = first.serving[vm.id]
        assert process == identity
        assert socket.is_socket()
    assert first.serving == {}

    # Another agent goes on, whatever its own configuration makes of new VMs.
    async with lone_fleet(short_dir, rows=(vm,), processor=second) as fleet:
        assert fleet.view(vm.id).simulated
        await second.begun.wait()
        assert second.serving[vm.id] == (identity, socket)
        await fleet.stop(vm, grace_s=0)
        assert second.serving == {}
        assert not socket.exists()


async def test_it_boots_the_releases_firmware_and_a_plain_vm_does_not(short_dir: Path) -> None:
    vm, plain = row("aaaaaaa2", 1), row("aaaaaaa3", 2)
    wanted = order(measured_image(short_dir))
    async with lone_fleet(short_dir, **promise()) as fleet:
        identity = await fleet.launch(vm, wanted)
        assert b"-bios" in argv_of(identity.pid)
        await fleet.stop(vm, grace_s=0)
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(plain, wanted)
        assert b"-bios" not in argv_of(identity.pid)
        assert not fleet.view(plain.id).simulated


async def test_what_would_be_measured_otherwise_is_refused_before_anything_starts(
    short_dir: Path,
) -> None:
    vm, wanted = row("aaaaaaa2"), order(measured_image(short_dir))
    async with lone_fleet(short_dir, **promise("cd" * 48)) as fleet:
        with pytest.raises(EnclaveError, match=f"{'cd' * 48}.*{PROMISED}") as refused:
            await fleet.launch(vm, wanted)
        assert refused.value.code == "measurement_mismatch"
        assert processes_of(vm.launch_uuid) == []
        assert fleet.view(vm.id) == ABSENT
        assert list((short_dir / "run").iterdir()) == []


async def test_what_is_measured_are_the_descriptors_that_qemu_gets(short_dir: Path) -> None:
    vm, wanted = row("aaaaaaa2"), order(measured_image(short_dir))
    seen: list[tuple[MeasuredLaunch, tuple[str, ...]]] = []

    def check(release: Release, launch: MeasuredLaunch, sha256s: Any) -> None:
        seen.append((launch, tuple(sha256s)))

    async with lone_fleet(short_dir, tee=Tee.SIMULATED, check_launch=check) as fleet:
        identity = await fleet.launch(vm, wanted)
        argv = argv_of(identity.pid)
    ((launch, hashes),) = seen
    given = [
        argv[argv.index(option) + 1].decode() for option in (b"-bios", b"-kernel", b"-initrd")
    ]
    assert given == [str(launch.firmware), str(launch.kernel), str(launch.initrd)]
    release = wanted.release
    assert hashes == (release.firmware_sha256, release.kernel.sha256, release.initrd.sha256)
    assert (launch.vcpus, launch.cmdline) == (vm.vcpus, release.cmdline)


async def test_a_launch_given_up_while_it_is_measured_leaves_nothing(short_dir: Path) -> None:
    vm, wanted = row("aaaaaaa2"), order(measured_image(short_dir))
    begun, go_on = threading.Event(), threading.Event()
    readable: list[bool] = []

    def check(release: Release, launch: MeasuredLaunch, sha256s: Any) -> None:
        begun.set()
        go_on.wait(10)
        readable.append(launch.kernel.exists())  # its descriptor is not closed under its hands

    async with lone_fleet(short_dir, tee=Tee.SIMULATED, check_launch=check) as fleet:
        launching = asyncio.create_task(fleet.launch(vm, wanted))
        await asyncio.to_thread(begun.wait, 10)
        launching.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await launching
        await until(fleet, vm.id, lambda view: view == ABSENT)
        assert readable == [True]
        assert processes_of(vm.launch_uuid) == []
        assert list((short_dir / "run").iterdir()) == []


async def test_without_its_firmware_it_is_refused(short_dir: Path) -> None:
    vm, image = row("aaaaaaa2"), measured_image(short_dir)
    without = msgspec.structs.replace(image.files, firmware=None)
    async with lone_fleet(short_dir, **promise()) as fleet:
        with pytest.raises(EnclaveError, match=r"qemu\.firmware_dir") as refused:
            await fleet.launch(vm, order(msgspec.structs.replace(image, files=without)))
        assert refused.value.code == "firmware_missing"
        assert fleet.view(vm.id) == ABSENT


async def test_an_ended_one_still_says_that_it_was_simulated(short_dir: Path) -> None:
    vm, wanted = row("aaaaaaa2"), order(measured_image(short_dir))
    async with lone_fleet(short_dir, **promise()) as fleet:
        identity = await fleet.launch(vm, wanted)
        os.kill(identity.pid, signal.SIGKILL)
        view = await until(fleet, vm.id, lambda view: view.phase is VmPhase.EXITED)
        assert view.simulated
