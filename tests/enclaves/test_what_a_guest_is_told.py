"""The external config that a launch gives its guest: its name, its hardware, what it was given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from agent.config import Tee
from agent.enclaves.accel import AccelVerdict
from agent.enclaves.hardware import Hardware
from agent.enclaves.launcher import Launcher
from agent.enclaves.network_user import UserNetwork
from agent.enclaves.port import LaunchOrder
from agent.enclaves.rundir import RunDir
from agent.enclaves.spec import VmAccel
from agent.enclaves.supervisor import StartRequest
from agent.host.process import Process, identify
from agent.inventory.processor import cpu_model
from agent.model.enclave import ProcessIdentity
from agent.model.gpu import CcMode, Gpu
from agent.model.ids import Bdf
from tests.enclaves.test_launch_confidential import Probe
from tests.fakes import tiny_kernels, vm_specs
from tests.fakes.tiny_firmware import tiny_firmware
from tests.fakes.vms import SUBNET, order, row, tiny_image, with_firmware

GPUS = [Bdf(f"0000:{n:02x}:00.0") for n in (0x18, 0x2A)]
EPYC = "AMD EPYC 9654 96-Core Processor"


class Reader:
    """A supervisor that starts nothing, and reads the disk that the guest would read."""

    kind = "reader"

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    async def start(self, request: StartRequest) -> ProcessIdentity:
        argv = list(request.argv)
        (fd,) = [
            int(argv[i + 1].partition("fd=")[2].partition(",")[0])
            for i, word in enumerate(argv)
            if word == "-add-fd" and argv[i + 1].endswith("set=3")
        ]
        self.told = yaml.safe_load(os.pread(fd, 1 << 20, 0).rstrip(b"\0"))
        found = identify(os.getpid())
        assert found is not None
        return found

    async def kill(self, name: str, process: Process) -> None:
        raise AssertionError("nothing was started")

    def unit(self, name: str) -> str | None:
        return None


async def told(
    home: Path,
    *,
    tee: Tee = Tee.NONE,
    gpus: tuple[str | None, ...] = (),
    secrets: dict[str, str] | None = None,
    cpu: str = EPYC,
    **revision: Any,
) -> dict[str, Any]:
    """What a guest of such a launch reads. `gpus`: the models of its GPUs."""

    async def verdict() -> AccelVerdict:
        return AccelVerdict(value=VmAccel.KVM, reason="of the test")

    cards = {
        bdf: Gpu(bdf=bdf, name=name, bars=vm_specs.H100_BARS)
        for bdf, name in zip(GPUS, gpus, strict=False)
    }
    firmware = home / "firmware"
    firmware.write_bytes(tiny_firmware())
    reader = Reader()
    launcher = Launcher(
        binary="qemu-system-x86_64",
        user=None,
        network=UserNetwork(SUBNET),
        supervisor=reader,
        verdict=verdict,
        hardware=Hardware(tee, Probe(), device_of=cards.get, firmware=firmware, cpu_model=cpu),
    )
    usual = order(with_firmware(tiny_image(home / "image", tiny_kernels.halting()), firmware))
    asked = LaunchOrder(
        revision=msgspec.structs.replace(usual.revision, **({"guest_domain": None} | revision)),
        release=usual.release,
        image=usual.image,
        secrets=usual.secrets if secrets is None else secrets,
        host_id="host",
    )
    vm = row("aaaaaaa2", gpus=tuple(cards), gpu_mode=CcMode.ON if cards else None)
    run = home / "run"
    run.mkdir()
    await launcher.start(vm, asked, RunDir(run, vm.id))
    return reader.told


@pytest.mark.parametrize(
    ("revision", "name"),
    [
        ({"guest_domain": "web.enclaves.example"}, "web.enclaves.example"),
        ({"domain": "web.example", "guest_domain": "web.example"}, "web.example"),
        ({"domain": "web.example"}, "web.example"),
        ({"variables": {"DOMAIN": "own.example"}}, "own.example"),
        ({}, "localhost"),
    ],
)
async def test_every_guest_is_told_its_name_as_a_variable_and_in_the_metadata(
    tmp_path: Path, revision: dict[str, Any], name: str
) -> None:
    found = await told(tmp_path, **revision)
    assert (found["env"]["DOMAIN"], found["metadata"]["domain"]) == (name, name)


@pytest.mark.parametrize(
    ("tee", "kind"),
    [
        (Tee.NONE, "none"),
        (Tee.SIMULATED, "simulated"),
        (Tee.SEV_SNP, "sev-snp"),
        (Tee.TDX, "tdx"),
    ],
)
async def test_the_processor_is_told_by_its_tee_with_its_model_behind_it(
    tmp_path: Path, tee: Tee, kind: str
) -> None:
    found = await told(tmp_path, tee=tee)
    assert found["metadata"]["cpu"] == f"{kind} {EPYC}"


async def test_a_processor_without_a_model_is_told_by_its_tee(tmp_path: Path) -> None:
    assert (await told(tmp_path, cpu=""))["metadata"]["cpu"] == "none"


@pytest.mark.parametrize(
    ("gpus", "kind"),
    [
        ((), ""),
        (("NVIDIA H100 80GB HBM3",), "NVIDIA H100 80GB HBM3"),
        (("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"), "NVIDIA H100 80GB HBM3"),
        (("NVIDIA H100 PCIe", "NVIDIA L40S"), "NVIDIA H100 PCIe, NVIDIA L40S"),
        ((None,), ""),
    ],
)
async def test_the_gpus_are_told_by_their_model(
    tmp_path: Path, gpus: tuple[str | None, ...], kind: str
) -> None:
    assert (await told(tmp_path, gpus=gpus))["metadata"]["gpu"] == kind


async def test_credentials_that_no_config_declares_reach_the_guest(tmp_path: Path) -> None:
    given = {"REGISTRY_GHCR_IO_TOKEN": "t", "GCLOUD_KEY": "{}", "CERT_AUTH_TOKEN": "c"}
    assert (await told(tmp_path, secrets=given))["secrets"] == given


def test_the_model_is_the_kernels_word(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nmodel\t\t: 17\nmodel name\t: {EPYC}\n\nmodel name\t: other\n"
    )
    assert cpu_model(tmp_path) == EPYC
    assert cpu_model(tmp_path / "nothing") == ""
