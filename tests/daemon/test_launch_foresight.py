"""What a launch would fail for is known before it is tried: a plan does not say that it goes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.config import Accel, Config, QemuConfig, Tee
from agent.daemon.launch_foresight import LaunchForesight
from agent.model.release import LocalImage, Release
from agent.releases.measurement import MeasurementCheck, MeasurementMismatchError, unmeasured
from simulator.simulated_host import release

FIRMWARE = Path("/usr/share/firmware")
MEASURED = msgspec.structs.replace(
    release("v1"), firmware_sha256="ab" * 32, snp_measurement="cd" * 48
)
IMAGE = LocalImage(kernel=Path("k"), initrd=Path("i"), root_disk=Path("r"))


async def mismatch(one: Release, image: LocalImage, vcpus: int) -> None:
    raise MeasurementMismatchError(one, vcpus, predicted="00", expected="11")


async def told(
    tee: Tee,
    one: Release,
    *,
    firmware: Path | None = FIRMWARE,
    image: LocalImage | None = None,
    measured: MeasurementCheck = unmeasured,
    **fields: object,
) -> list[str]:
    async def found(_: Release) -> Path | None:
        return firmware

    fields = {"qemu": QemuConfig(binary="sh")} | fields  # a program that is there
    foresight = LaunchForesight(
        tee,
        Config(**fields),
        local=lambda _: image,
        firmware=found,
        measured=measured,
        preflight=None,
    )
    return [f"{one.code}: {one.detail}" for one in await foresight(one)]


@pytest.mark.parametrize("tee", [Tee.NONE, Tee.SIMULATED])
async def test_where_nothing_is_missing_nothing_is_told(tee: Tee) -> None:
    assert await told(tee, MEASURED) == []
    assert await told(tee, MEASURED, image=IMAGE) == []


async def test_a_host_without_its_qemu_launches_nothing() -> None:
    (line,) = await told(Tee.NONE, release("v1"), qemu=QemuConfig(binary="qemu-that-is-not"))
    assert line.startswith("launch_impossible: QEMU: qemu-that-is-not is not there")


async def test_the_firmware_of_this_very_release_is_looked_for() -> None:
    (line,) = await told(Tee.SIMULATED, MEASURED, firmware=None)
    assert line.startswith("launch_impossible: no file of ")
    assert await told(Tee.NONE, MEASURED, firmware=None) == []  # plain VMs boot QEMU's own


async def test_a_release_that_promises_nothing_cannot_be_attested() -> None:
    (line,) = await told(Tee.SIMULATED, release("v1"))
    assert line.startswith("release_invalid: ")
    assert "no launch digest" in line


async def test_what_is_here_is_measured_as_a_launch_would_be() -> None:
    (line,) = await told(Tee.SIMULATED, MEASURED, image=IMAGE, measured=mismatch)
    assert line.startswith("measurement_mismatch: ")


async def test_an_accelerator_that_is_insisted_on_must_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    lines = await told(Tee.NONE, release("v1"), accel=Accel.KVM)
    assert any("/dev/kvm may not be used" in line for line in lines)
