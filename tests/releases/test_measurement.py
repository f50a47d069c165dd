"""The launch digest, and what happens where it is not the one that a release promises."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.model.measurement import MeasuredLaunch
from agent.model.release import LocalImage, Release
from agent.releases.launch_digest import UnmeasurableError, snp_launch_digest
from agent.releases.measurement import (
    FirmwareMissingError,
    MeasurementMismatchError,
    SnpMeasurements,
    unmeasured,
)
from agent.releases.port import ReleaseError
from simulator.simulated_host import release as some_release
from tests.fakes.tiny_firmware import tiny_firmware

CMDLINE = "root=/dev/mapper/root x=1,2"
# By `sev-snp-measure --mode snp --vcpu-type EPYC-v4` over the files below.
KNOWN = {
    1: "a32d9936dda98100a7fee04a69e0134bbcdb3f787772a2a88a9e4e0aeee70677"
    "ea5e07df93bd3be80369ab93b01da35c",
    2: "116db8030c0e34fc09e578c73afb981a9eb0458fabbfcc2c71fdc13fe4350f6d"
    "68af12473e463b41a34d64a26d7275e5",
    8: "914acfab1a59eb40ffc199f0e5e461fa8a13f7f4c6cfd8e5b7d7586a1cc35119"
    "f2221fb24086ce1adccd4c281e5e758b",
}


@pytest.fixture
def image(tmp_path: Path) -> LocalImage:
    files = LocalImage(
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        root_disk=tmp_path / "root",
        firmware=tmp_path / "firmware",
    )
    files.kernel.write_bytes(b"a kernel\n")
    files.initrd.write_bytes(b"an initrd\n")
    assert files.firmware is not None
    files.firmware.write_bytes(tiny_firmware())
    return files


def launch(image: LocalImage, **changes: Any) -> MeasuredLaunch:
    assert image.firmware is not None
    values: dict[str, Any] = {
        "vcpus": 1,
        "firmware": image.firmware,
        "kernel": image.kernel,
        "initrd": image.initrd,
        "cmdline": CMDLINE,
    }
    return MeasuredLaunch(**(values | changes))


def promising(measurement: str | None, **changes: Any) -> Release:
    values = {"cmdline": CMDLINE, "snp_measurement": measurement, "firmware_sha256": "a" * 64}
    return msgspec.structs.replace(some_release("v1.0.0"), **(values | changes))


@pytest.mark.parametrize("vcpus", KNOWN)
def test_the_digest_is_the_known_one(vcpus: int, image: LocalImage) -> None:
    assert snp_launch_digest(launch(image, vcpus=vcpus)).hex() == KNOWN[vcpus]


@pytest.mark.parametrize("vcpus", KNOWN)
def test_what_was_just_hashed_is_not_read_again(vcpus: int, image: LocalImage) -> None:
    hashes = {
        f"{name}_sha256": hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in (("kernel", image.kernel), ("initrd", image.initrd))
    }
    gone = {"kernel": Path("/nowhere"), "initrd": Path("/nowhere")}
    hashed = launch(image, vcpus=vcpus, **hashes, **gone)
    assert snp_launch_digest(hashed).hex() == KNOWN[vcpus]


def test_every_part_of_a_launch_changes_the_digest(image: LocalImage, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"something else\n")
    firmware = tmp_path / "other.fd"
    firmware.write_bytes(tiny_firmware(filling=b"\x91"))
    digests = {
        snp_launch_digest(launch(image, **change))
        for change in (
            {},
            {"kernel": other},
            {"initrd": other},
            {"firmware": firmware},
            {"cmdline": CMDLINE + " "},
            {"vcpus": 3},
        )
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"\0" * 65536, tiny_firmware(kernel_hashes=False), tiny_firmware()[:-1]],
    ids=["empty", "short", "zeros", "no kernel hashes", "cut off"],
)
def test_a_firmware_that_cannot_be_measured_is_told(data: bytes, image: LocalImage) -> None:
    assert image.firmware is not None
    image.firmware.write_bytes(data)
    with pytest.raises(UnmeasurableError, match="no SEV-SNP metadata") as told:
        snp_launch_digest(launch(image))
    assert told.value.code == "firmware_unfit"


async def test_the_promised_measurement_passes(image: LocalImage) -> None:
    await SnpMeasurements().check_image(promising(KNOWN[2]), image, 2)


async def test_another_one_is_refused_with_both_values(image: LocalImage) -> None:
    with pytest.raises(MeasurementMismatchError) as refused:
        await SnpMeasurements().check_image(promising(KNOWN[1]), image, 2)
    assert refused.value.code == "measurement_mismatch"
    assert KNOWN[1] in str(refused.value)
    assert KNOWN[2] in str(refused.value)


async def test_an_initrd_altered_after_it_was_measured_is_refused(image: LocalImage) -> None:
    measurements = SnpMeasurements()
    await measurements.check_image(promising(KNOWN[1]), image, 1)
    image.initrd.write_bytes(b"an initrd!\n")
    with pytest.raises(MeasurementMismatchError):
        await measurements.check_image(promising(KNOWN[1]), image, 1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"snp_measurement": None}, "no snp_measurement"),
        ({"firmware_sha256": None}, "names no firmware"),
    ],
    ids=["measurement", "firmware"],
)
async def test_a_release_that_promises_nothing_is_refused(
    changes: dict[str, None], text: str, image: LocalImage
) -> None:
    release = promising(KNOWN[1], **changes)
    with pytest.raises(ReleaseError, match=text):
        await SnpMeasurements().check_image(release, image, 1)


async def test_a_missing_firmware_is_named_with_the_place_for_it(image: LocalImage) -> None:
    without = msgspec.structs.replace(image, firmware=None)
    with pytest.raises(FirmwareMissingError, match=r"qemu\.firmware_dir has SHA-256 aaaa"):
        await SnpMeasurements().check_image(promising(KNOWN[1]), without, 1)


async def test_the_same_bytes_are_measured_once_whatever_they_are_called(
    image: LocalImage, tmp_path: Path
) -> None:
    asked: list[MeasuredLaunch] = []

    def digest(launch: MeasuredLaunch) -> bytes:
        asked.append(launch)
        return bytes.fromhex(KNOWN[1])

    measurements = SnpMeasurements(digest=digest)
    await measurements.check_image(promising(KNOWN[1]), image, 1)
    copy = tmp_path / "copy"
    copy.write_bytes(image.kernel.read_bytes())
    await measurements.check_image(
        promising(KNOWN[1]), msgspec.structs.replace(image, kernel=copy), 1
    )
    assert len(asked) == 1
    image.kernel.write_bytes(b"another kernel\n")
    await measurements.check_image(promising(KNOWN[1]), image, 1)
    await measurements.check_image(promising(KNOWN[1]), image, 2)
    assert len(asked) == 3
    assert all(str(one.kernel).startswith("/proc/self/fd/") for one in asked)


async def test_where_expected_values_come_from_is_pluggable(image: LocalImage) -> None:
    def of_the_operator(release: Release) -> str | None:
        return KNOWN[1]

    await SnpMeasurements(of_the_operator).check_image(promising("f" * 96), image, 1)


async def test_the_loop_goes_on_while_a_launch_is_measured(image: LocalImage) -> None:
    """75 MiB, as a real image has; never a pause of the loop that a probe would notice."""
    for path in (image.kernel, image.initrd):
        with path.open("wb") as file:
            file.truncate(37 << 20)
    loop, worst = asyncio.get_running_loop(), 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            worst = max(worst, loop.time() - before)

    watching = asyncio.create_task(watch())
    with pytest.raises(MeasurementMismatchError):
        await SnpMeasurements().check_image(promising(KNOWN[1]), image, 1)
    watching.cancel()
    assert worst < 0.2  # of a machine that others use too


async def test_of_plain_vms_nothing_is_measured(image: LocalImage) -> None:
    await unmeasured(promising(None), image, 1)


def test_artifacts_are_known_by_their_hashes(image: LocalImage) -> None:
    """What the launcher hashed is what the digest is remembered by."""
    names = (image.firmware, image.kernel, image.initrd)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in names if path]
    measurements = SnpMeasurements()
    measurements.check_launch(promising(KNOWN[1]), launch(image), hashes)
    gone = launch(image, kernel=Path("/nowhere"))
    measurements.check_launch(promising(KNOWN[1]), gone, hashes)
    with pytest.raises(MeasurementMismatchError):
        measurements.check_launch(promising(KNOWN[2]), gone, hashes)
