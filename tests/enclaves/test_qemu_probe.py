"""What a QEMU can do, asked of real ones and of programs that are none."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from agent.config import Tee
from agent.enclaves.capabilities import OBJECTS, QemuCapabilities, SevPlatform, lacks
from agent.enclaves.qemu_probe import QemuProbe, QemuProbeError
from tests.fakes.argv_bench import QEMU, cached_qemu

SYSTEM = pytest.mark.skipif(shutil.which(QEMU) is None, reason="no QEMU here")
ABLE = QemuCapabilities(
    version=(10, 0, 2),
    objects={
        "sev-snp-guest": (
            *("cbitpos", "host-data", "kernel-hashes", "policy"),
            *("reduced-phys-bits", "sev-device"),
        ),
        "memory-backend-memfd": tuple(OBJECTS["memory-backend-memfd"]),
        "iommufd": ("fd",),
    },
    devices={"vfio-pci": ("host", "iommufd")},
    sev=SevPlatform(cbitpos=51, reduced_phys_bits=1),
)


def probe(home: Path, binary: str, *, sev: bool = False) -> QemuProbe:
    return QemuProbe(binary=binary, user=None, state_dir=home, run_dir=home, sev=sev)


def program(home: Path, text: str) -> str:
    path = home / "qemu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_qemu_that_can_everything_lacks_nothing() -> None:
    assert lacks(ABLE, Tee.SEV_SNP, devices=True) == []
    assert (
        lacks(QemuCapabilities(version=(7, 2, 0), objects={}, devices={}), Tee.NONE, devices=True)
        == []
    )


def test_version_object_property_and_processor_are_each_told() -> None:
    old = msgspec.structs.replace(ABLE, version=(8, 2, 0), objects={}, devices={})
    told = lacks(old, Tee.SEV_SNP, devices=True)
    assert told[0] == "tee: sev-snp needs QEMU 9.1 or newer"
    assert "it has no object sev-snp-guest" in told
    assert "it has no object iommufd" in told
    assert "it has no device vfio-pci" in told
    dumb = msgspec.structs.replace(ABLE, devices={"vfio-pci": ("host",)}, sev=None, no_sev="why")
    assert lacks(dumb, Tee.SEV_SNP, devices=True) == [
        "its device vfio-pci has no iommufd",
        "it does not say where this processor's C-bit is: why",
    ]
    assert lacks(dumb, Tee.SEV_SNP, devices=False) == [
        "it does not say where this processor's C-bit is: why"
    ]
    assert lacks(ABLE, Tee.TDX, devices=False)[0] == "tee: tdx needs QEMU 10.1 or newer"


@pytest.mark.parametrize(
    ("version", "tee", "devices", "refused"),
    [
        ((9, 1, 0), Tee.SEV_SNP, True, True),
        ((9, 1, 3), Tee.SEV_SNP, True, True),
        ((9, 1, 94), Tee.SEV_SNP, True, True),  # candidates of 9.2 are called so
        ((9, 1, 0), Tee.SEV_SNP, False, False),
        ((9, 1, 0), Tee.NONE, True, False),
        ((9, 2, 0), Tee.SEV_SNP, True, False),
        ((10, 0, 0), Tee.SEV_SNP, True, False),
    ],
)
def test_a_release_with_a_known_fault_is_refused_for_what_it_spoils(
    version: tuple[int, int, int], tee: Tee, devices: bool, refused: bool
) -> None:
    told = lacks(msgspec.structs.replace(ABLE, version=version), tee, devices=devices)
    assert bool(told) is refused
    assert all("QEMU 9.2 and newer do" in one for one in told)


@SYSTEM
@pytest.mark.qemu
async def test_a_real_qemu_says_what_it_can(tmp_path: Path) -> None:
    found = await probe(tmp_path, QEMU, sev=True).capabilities()
    assert found.version >= (7, 2, 0)
    assert {"host"} <= set(found.devices["vfio-pci"])
    assert "size" in found.objects["memory-backend-ram"]
    if found.sev is None:
        assert found.no_sev
        assert not (tmp_path / "qemu.json").exists()  # asked anew once /dev/sev is mended
    assert not (tmp_path / "qemu-probe").exists()


@pytest.mark.qemu
@pytest.mark.parametrize(("kind", "tee"), [("snp", Tee.SEV_SNP), ("tdx", Tee.TDX)])
async def test_newer_ones_lack_only_the_hardware(tmp_path: Path, kind: str, tee: Tee) -> None:
    binary = cached_qemu(kind)
    if binary is None:
        pytest.skip(f"no QEMU for {kind} in .cache/qemu: scripts/fetch-qemu fetches it")
    found = await probe(tmp_path, binary, sev=tee is Tee.SEV_SNP).capabilities()
    told = lacks(found, tee, devices=True)
    assert [one for one in told if "C-bit" not in one] == []


@SYSTEM
@pytest.mark.qemu
async def test_an_answer_is_kept_for_that_very_executable(tmp_path: Path) -> None:
    count = tmp_path / "count"
    binary = program(tmp_path, f'echo x >>{count}\nexec {QEMU} "$@"')
    first = probe(tmp_path, binary)
    found = await first.capabilities()
    assert await first.capabilities() == found
    assert await probe(tmp_path, binary).capabilities() == found  # another run of the agent
    assert count.read_text() == "x\n"
    program(tmp_path, f'echo x >>{count}\nexec {QEMU} "$@" # replaced')
    assert await first.capabilities() == found
    assert count.read_text() == "x\nx\n"
    (tmp_path / "qemu.json").write_text("{")
    assert await probe(tmp_path, binary).capabilities() == found


async def test_what_is_no_qemu_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(QemuProbeError, match=r"there is no .*/none"):
        await probe(tmp_path, str(tmp_path / "none")).capabilities()
    binary = program(tmp_path, "echo first; echo 'cannot: load libfoo' >&2; exit 1")
    with pytest.raises(QemuProbeError, match="cannot: load libfoo"):
        await probe(tmp_path, binary).capabilities()


async def test_a_probe_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    binary = program(tmp_path, f"echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 1000")
    task = asyncio.create_task(probe(tmp_path, binary).capabilities())
    while not pid.exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    process, deadline = Path("/proc") / pid.read_text().strip(), time.monotonic() + 30
    while process.exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert not process.exists()
