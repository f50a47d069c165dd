"""A trust domain that would not be the promised one is refused before anything is stopped."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.attestation.expected import expected_of
from agent.attestation.policy_tdx import policy_of
from agent.config import TdxConfig, TdxPlatform
from agent.host.files import StorageError
from agent.model.release import LocalImage, Release
from agent.model.resources import Demand
from agent.model.shape import Shape, shape_of
from agent.releases.authenticode import ImageUnfitError
from agent.releases.port import ReleaseError
from agent.releases.tdx_measurement import (
    PlatformNotEndorsedError,
    RegisterMismatchError,
    TdxMeasurements,
)
from agent.releases.tdx_registers import rtmr1, rtmr2
from simulator.simulated_host import release as some_release
from tests.fakes.efi_kernels import efi_kernel

KERNEL, INITRD, CMDLINE = efi_kernel(), b"an initrd" * 999, "root=/dev/mapper/root"
DEMAND = Demand(memory_mib=16384, vcpus=8, gpus=1)
SHAPE = Shape(cpus=8, memory_mb=16384, gpus=1, disks=4)
ANY = TdxPlatform(mrtd="aa" * 48, rtmr0="bb" * 48)
OTHER = "cd" * 48


def promised(kernel: bytes = KERNEL, initrd: bytes = INITRD, cmdline: str = CMDLINE) -> Any:
    return {
        "rtmr1": rtmr1(kernel, len(initrd), cmdline, DEMAND.memory_mib).hex(),
        "rtmr2": rtmr2(cmdline, hashlib.sha384(initrd).digest()).hex(),
    }


def release(**changes: Any) -> Release:
    values = {
        "cmdline": CMDLINE,
        "demand": DEMAND,
        "models": ("ab" * 32,),
        "tdx_measurement": promised(),
    }
    return msgspec.structs.replace(some_release("v1.0.0"), **(values | changes))


@pytest.fixture
def image(tmp_path: Path) -> LocalImage:
    files = LocalImage(
        kernel=tmp_path / "kernel", initrd=tmp_path / "initrd", root_disk=tmp_path / "root"
    )
    files.kernel.write_bytes(KERNEL)
    files.initrd.write_bytes(INITRD)
    return files


async def check(of: Release, image: LocalImage, *platforms: TdxPlatform) -> None:
    await TdxMeasurements(platforms or (ANY,)).check_image(of, image, of.demand.vcpus)


async def test_the_promised_registers_pass(image: LocalImage) -> None:
    await check(release(), image)


@pytest.mark.parametrize(
    ("tdx", "said"),
    [
        ({"rtmr1": OTHER}, ["RTMR1 would be", OTHER]),
        ({"rtmr2": OTHER}, ["RTMR2 would be", OTHER]),
        ({"rtmr1": OTHER, "rtmr2": OTHER}, ["RTMR1 would be", "RTMR2 would be"]),
        (promised(cmdline=CMDLINE + " quiet"), ["RTMR2 would be"]),
        (promised(initrd=INITRD[:-1]), ["RTMR1 would be", "RTMR2 would be"]),
        (promised(kernel=efi_kernel(body=b"\x91" * 512)), ["RTMR1 would be"]),
    ],
)
async def test_other_registers_are_refused_with_both_values(
    tdx: dict[str, str], said: list[str], image: LocalImage
) -> None:
    with pytest.raises(RegisterMismatchError) as refused:
        await check(release(tdx_measurement=promised() | tdx), image)
    assert refused.value.code == "measurement_mismatch"
    text = str(refused.value)
    assert all(word in text for word in said)
    assert text.count("would be") == sum("would be" in word for word in said)
    assert all(promised()[name] in text for name in tdx if promised()[name] != tdx[name])


async def test_an_initrd_altered_on_this_host_is_refused(image: LocalImage) -> None:
    image.initrd.write_bytes(INITRD + b"!")
    with pytest.raises(RegisterMismatchError):
        await check(release(), image)


async def test_the_registers_of_a_kernel_as_it_is_in_its_file_are_none_of_it(
    image: LocalImage,
) -> None:
    """QEMU writes into its header."""
    from agent.releases.authenticode import authenticode_sha384
    from agent.releases.tdx_registers import register1_of

    unpatched = register1_of(authenticode_sha384(KERNEL)).hex()
    with pytest.raises(RegisterMismatchError, match=unpatched):
        await check(release(tdx_measurement=promised() | {"rtmr1": unpatched}), image)


async def test_what_promises_nothing_or_cannot_be_measured_is_refused(image: LocalImage) -> None:
    with pytest.raises(ReleaseError, match="no tdx_measurement"):
        await check(release(tdx_measurement=None), image)
    image.kernel.write_bytes(b"no kernel\n")
    with pytest.raises(ImageUnfitError):
        await check(release(), image)
    image.kernel.unlink()
    with pytest.raises(StorageError, match="kernel"):
        await check(release(), image)


@pytest.mark.parametrize(
    ("platforms", "endorsed"),
    [
        ((ANY,), True),
        ((TdxPlatform(mrtd="aa" * 48, rtmr0="bb" * 48, shape=SHAPE),), True),
        (
            (
                TdxPlatform(
                    mrtd="aa" * 48, rtmr0="bb" * 48, shape=msgspec.structs.replace(SHAPE, cpus=4)
                ),
            ),
            False,
        ),
        (
            (
                TdxPlatform(
                    mrtd="aa" * 48, rtmr0="bb" * 48, shape=msgspec.structs.replace(SHAPE, gpus=8)
                ),
            ),
            False,
        ),
        (
            (
                TdxPlatform(
                    mrtd="aa" * 48, rtmr0="bb" * 48, shape=msgspec.structs.replace(SHAPE, disks=5)
                ),
            ),
            False,
        ),
        (
            (
                TdxPlatform(
                    mrtd="aa" * 48,
                    rtmr0="cc" * 48,
                    shape=msgspec.structs.replace(SHAPE, memory_mb=1),
                ),
                TdxPlatform(mrtd="aa" * 48, rtmr0="bb" * 48, shape=SHAPE),
            ),
            True,
        ),
        ((), False),
    ],
)
async def test_a_shape_without_an_endorsed_platform_is_refused(
    platforms: tuple[TdxPlatform, ...], endorsed: bool, image: LocalImage
) -> None:
    measurements = TdxMeasurements(platforms)
    if endorsed:
        await measurements.check_image(release(), image, 8)
        return
    with pytest.raises(
        PlatformNotEndorsedError, match=r"8 cpus, 16384 memory_mb, 1 gpus, 4 disks"
    ):
        await measurements.check_image(release(), image, 8)


def test_evidence_is_held_against_the_platforms_of_its_shape_alone() -> None:
    wider = msgspec.structs.replace(SHAPE, cpus=16)
    config = TdxConfig(
        platforms=(
            TdxPlatform(mrtd="aa" * 48, rtmr0="01" * 48, name="any"),
            TdxPlatform(mrtd="aa" * 48, rtmr0="02" * 48, name="mine", shape=SHAPE),
            TdxPlatform(mrtd="aa" * 48, rtmr0="03" * 48, name="wider", shape=wider),
        )
    )
    names = [one.name for one in policy_of(config, expected_of(release())).platforms]
    assert names == ["any", "mine"]
    assert shape_of(release()) == SHAPE
    other = expected_of(release(demand=msgspec.structs.replace(DEMAND, vcpus=16)))
    assert [one.name for one in policy_of(config, other).platforms] == ["any", "wider"]
