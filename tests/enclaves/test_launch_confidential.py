"""A confidential launch up to QEMU's start, on a host that only seems to have the hardware."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import Tee
from agent.enclaves.accel import AccelVerdict
from agent.enclaves.capabilities import DEVICES, OBJECTS, QemuCapabilities, SevPlatform
from agent.enclaves.hardware import Hardware
from agent.enclaves.launcher import Launcher
from agent.enclaves.network_user import UserNetwork
from agent.enclaves.port import EnclaveError
from agent.enclaves.rundir import RunDir
from agent.enclaves.spec import VmAccel
from agent.enclaves.supervisor import StartRequest
from agent.errors import AgentError
from agent.host.process import Process, identify
from agent.model.enclave import Enclave, ProcessIdentity
from agent.model.gpu import CcMode, Gpu
from agent.model.ids import Bdf
from agent.model.measurement import MeasuredLaunch
from agent.releases.launch_digest import snp_launch_digest
from agent.releases.measurement import MeasurementMismatchError, SnpMeasurements
from tests.fakes import tiny_kernels, vm_specs
from tests.fakes.tiny_firmware import tiny_firmware
from tests.fakes.vms import SUBNET, Image, order, row, tiny_image, with_firmware

GPU = Bdf("0000:18:00.0")
CARD = Gpu(bdf=GPU, bars=vm_specs.H100_BARS, numa_node=1)
ABLE = QemuCapabilities(
    version=(11, 1, 0),
    objects={name: tuple(sorted(keys)) for name, keys in OBJECTS.items()},
    devices={name: tuple(sorted(keys)) for name, keys in DEVICES.items()},
    sev=SevPlatform(cbitpos=47, reduced_phys_bits=5),
)


class Probe:
    """What QEMU says of itself."""

    def __init__(self, found: QemuCapabilities = ABLE) -> None:
        self.found = found

    async def capabilities(self) -> QemuCapabilities:
        return self.found


@dataclass
class Recorder:
    """A supervisor that starts nothing; keeps the request, and the digest of what it inherits."""

    requests: list[StartRequest] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    kind = "recorder"

    async def start(self, request: StartRequest) -> ProcessIdentity:
        self.requests.append(request)
        argv = list(request.argv)

        def given(option: str) -> Path:
            return Path(argv[argv.index(option) + 1])

        launch = MeasuredLaunch(
            vcpus=int(argv[argv.index("-smp") + 1]),
            firmware=given("-bios"),
            kernel=given("-kernel"),
            initrd=given("-initrd"),
            cmdline=argv[argv.index("-append") + 1],
        )
        if "EPYC" in argv[argv.index("-cpu") + 1]:
            self.digests.append(snp_launch_digest(launch).hex())
        found = identify(os.getpid())
        assert found is not None
        return found

    async def kill(self, name: str, process: Process) -> None:
        raise AssertionError("nothing was started")

    def unit(self, name: str) -> str | None:
        return None


def measured(home: Path) -> Image:
    """A release whose promise is what its bytes give."""
    image = tiny_image(home / "image", tiny_kernels.halting())
    firmware = home / "image" / "firmware"
    firmware.write_bytes(tiny_firmware())
    return with_firmware(image, firmware)


async def launch(home: Path, vm: Enclave, image: Image, **changes: Any) -> Recorder:
    """Up to the supervisor. `changes`: tee, probe, device_of, firmware, accel."""
    recorder = Recorder()

    async def verdict() -> AccelVerdict:
        return AccelVerdict(value=changes.get("accel", VmAccel.KVM), reason="of the test")

    launcher = Launcher(
        binary="qemu-system-x86_64",
        user=None,
        network=UserNetwork(SUBNET),
        supervisor=recorder,
        verdict=verdict,
        hardware=Hardware(
            changes.get("tee", Tee.SEV_SNP),
            changes.get("probe", Probe()),
            device_of=changes.get("device_of", {GPU: CARD}.get),
            firmware=changes.get("firmware"),
        ),
        check_launch=SnpMeasurements().check_launch,
    )
    run = home / "run"
    run.mkdir(exist_ok=True)
    await launcher.start(vm, order(image), RunDir(run, vm.id))
    return recorder


def objects(request: StartRequest) -> dict[str, dict[str, Any]]:
    argv = list(request.argv)
    texts = [argv[i + 1] for i, word in enumerate(argv) if word == "-object"]
    return {one["qom-type"]: one for one in map(json.loads, texts)}


async def test_two_slots_of_one_revision_are_measured_as_the_manifest_says(tmp_path: Path) -> None:
    image = measured(tmp_path)
    for number, gpus in ((2, ()), (3, (GPU,))):
        vm = row(f"aaaaaaa{number}", number, gpus=gpus, gpu_mode=CcMode.ON if gpus else None)
        recorder = await launch(tmp_path, vm, image)
        assert recorder.digests == [image.release.snp_measurement]


async def test_the_processors_numbers_are_those_of_the_qemu_that_runs_it(tmp_path: Path) -> None:
    vm = row("aaaaaaa2", gpus=(GPU,), gpu_mode=CcMode.ON)
    (request,) = (await launch(tmp_path, vm, measured(tmp_path))).requests
    told = objects(request)
    guest = told["sev-snp-guest"]
    assert (guest["cbitpos"], guest["reduced-phys-bits"]) == (47, 5)
    assert told["memory-backend-memfd"]["host-nodes"] == [1]
    assert "iommufd" in told
    assert "name=opt/ovmf/X-PciMmio64Mb,string=262144" in request.argv


async def test_bytes_that_would_be_measured_otherwise_start_nothing(tmp_path: Path) -> None:
    image = measured(tmp_path)
    other = msgspec.structs.replace(image.release, snp_measurement="ab" * 48)
    with pytest.raises(MeasurementMismatchError, match="ab" * 48) as refused:
        await launch(tmp_path, row("aaaaaaa2"), Image(files=image.files, release=other))
    assert refused.value.predicted == image.release.snp_measurement
    with pytest.raises(MeasurementMismatchError):  # more vCPUs are another launch
        await launch(tmp_path, row("aaaaaaa3", vcpus=2), image)


async def test_a_file_that_was_exchanged_after_it_was_fetched_starts_nothing(
    tmp_path: Path,
) -> None:
    image = measured(tmp_path)
    image.files.initrd.write_bytes(b"another\n")
    with pytest.raises(EnclaveError, match="but the release wants") as refused:
        await launch(tmp_path, row("aaaaaaa2"), image)
    assert refused.value.code == "artifact_mismatch"


async def test_a_trust_domain_boots_the_operators_firmware(tmp_path: Path) -> None:
    own = tmp_path / "OVMF.tdx.fd"
    own.write_bytes(tiny_firmware(filling=b"\xcc"))
    recorder = await launch(
        tmp_path, row("aaaaaaa2"), measured(tmp_path), tee=Tee.TDX, firmware=own
    )
    (request,) = recorder.requests
    argv = list(request.argv)
    assert "tdx-guest" in objects(request)
    assert argv[argv.index("-cpu") + 1] == "host"
    with pytest.raises(EnclaveError, match=r"qemu\.tdx_firmware"):
        await launch(tmp_path, row("aaaaaaa3"), measured(tmp_path), tee=Tee.TDX)


def unable(**changes: Any) -> Probe:
    return Probe(msgspec.structs.replace(ABLE, **changes))


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"probe": unable(version=(7, 2, 9), objects={})}, "qemu_unfit", "no object sev-snp"),
        ({"probe": unable(sev=None, no_sev="SEV is off")}, "qemu_unfit", "SEV is off"),
        ({"probe": unable(devices={})}, "qemu_unfit", "no device vfio-pci"),
        ({"device_of": lambda _: None}, "gpu_unknown", "BARs of 0000:18:00.0"),
        ({"accel": VmAccel.TCG}, "kvm_unavailable", "under KVM only"),
        ({"tee": Tee.AUTO}, "tee_unavailable", "not known"),
    ],
)
async def test_what_cannot_be_launched_is_said_before_anything_is_started(
    tmp_path: Path, changes: dict[str, Any], code: str, text: str
) -> None:
    vm = row("aaaaaaa2", gpus=(GPU,), gpu_mode=CcMode.ON)
    with pytest.raises(AgentError, match=text) as refused:
        await launch(tmp_path, vm, measured(tmp_path), **changes)
    assert refused.value.code == code


async def test_the_loop_goes_on_while_a_launch_is_hashed_and_measured(tmp_path: Path) -> None:
    image = measured(tmp_path)
    image.files.initrd.write_bytes(bytes(64 << 20))
    sha256 = hashlib.sha256(image.files.initrd.read_bytes()).hexdigest()
    release = msgspec.structs.replace(
        image.release, initrd=msgspec.structs.replace(image.release.initrd, sha256=sha256)
    )
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.002)
            ticks += 1

    ticking = asyncio.create_task(tick())
    with pytest.raises(MeasurementMismatchError):
        await launch(tmp_path, row("aaaaaaa2"), Image(files=image.files, release=release))
    ticking.cancel()
    assert ticks >= 5  # 64 MiB take longer than that by far


TD_CARD = msgspec.structs.replace(CARD, device=0x2330)


@pytest.mark.parametrize(("by_board", "slot"), [(True, 1), (False, None)])
async def test_a_row_of_before_keeps_the_machine_that_it_was_launched_with(
    tmp_path: Path, by_board: bool, slot: int | None
) -> None:
    """Its root port, and so the register that is endorsed for it, stays after an upgrade."""
    image = measured(tmp_path)
    vm = msgspec.structs.replace(row("tdxgpu22"), gpus=(GPU,), ports_by_board=by_board)
    recorder = await launch(
        tmp_path,
        vm,
        image,
        tee=Tee.TDX,
        device_of={GPU: TD_CARD}.get,
        firmware=image.files.firmware,
    )
    argv = recorder.requests[0].argv
    ports = [json.loads(one) for one in argv if one.startswith('{"driver":"pcie-root-port"')]
    assert [port.get("slot") for port in ports] == [slot]
    assert [port.get("addr") for port in ports] == [None if by_board else "01.0"]
    old = msgspec.json.encode(msgspec.structs.replace(vm, ports_by_board=False))
    kept = json.loads(old)
    del kept["ports_by_board"]
    assert msgspec.convert(kept, Enclave).ports_by_board is False
